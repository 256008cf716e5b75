"""Files that are no pictures, and pictures that would be read wrongly: left alone, or named, and never read wrongly."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import load_predictor, predict, predictions
from mrcnn_ext.inference.sources import open_source

pytestmark = pytest.mark.detectron2


def picture(path, height=64, width=80):
    array = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


def deep(path):
    Image.fromarray(np.full((64, 80), 1000, np.uint16)).save(path)


def floating(path):
    Image.fromarray(np.full((64, 80), 0.5, np.float32)).save(path)


def thin(path):
    picture(path, 1, 5000)


def damaged(path):
    data = bytearray(picture(path).read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


ODD = {
    "deep.png": (deep, "has more than 8 bits a pixel, which detectron2 cuts off at 255"),
    "floating.tif": (floating, "has floating-point pixels"),
    "thin.png": (thin, "nothing of its 1 x 5000 pixels"),
    "damaged.png": (damaged, ""),
}


@pytest.mark.parametrize("name", ODD)
def test_pictures_that_would_be_read_wrongly(cfg, tmp_path, name):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(folder / "good.png")
    make, expected = ODD[name]
    make(folder / name)
    predictor = load_predictor(cfg)
    with pytest.raises(UserError) as error:
        predict(predictor, folder, tmp_path / "out.json", progress=False)
    assert name in str(error.value) and expected in str(error.value)
    summary = predict(predictor, folder, tmp_path / "out.json", skip_unreadable=True, progress=False)
    assert [skipped["file_name"] for skipped in summary["skipped"]] == [name] and summary["images"] == 1


def test_a_picture_of_too_many_pixels_is_named(cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="large.png.*exceeds limit"):
        list(predictions(load_predictor(cfg), str(picture(tmp_path / "large.png"))))


@pytest.mark.parametrize("hidden", ["._1.png", ".cache/2.png", "__MACOSX/1.png", "@eaDir/1.png", ".1.png"])
def test_hidden_and_system_files_are_no_input(tmp_path, hidden):
    picture(tmp_path / "1.png")
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_bytes(b"no picture")
    source = open_source(str(tmp_path))
    assert [source.name(k) for k in range(len(source))] == [str(tmp_path / "1.png")]


@pytest.mark.parametrize("text", ["photos/1.jpg\nphotos/2.jpg\n", "Grüße\n" * 900, "a" * 4095 + "ü"])
def test_text_is_no_video(tmp_path, text):
    (tmp_path / "notes.log").write_text(text)
    with pytest.raises(UserError, match="notes.log: it is text, neither an image .* nor a video"):
        open_source(str(tmp_path / "notes.log"))


@pytest.fixture
def register(tmp_path):
    """Registers images and annotations in COCO's format and gives the dataset's name."""
    names = []

    def make(images, annotations):
        names.append(f"odd_files_{len(names)}")
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (tmp_path / f"{names[-1]}.json").write_text(json.dumps(content))
        register_coco_instances(names[-1], {}, str(tmp_path / f"{names[-1]}.json"), str(tmp_path))
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_datasets_annotations_do_not_matter_and_its_images_do(tmp_path, register):
    picture(tmp_path / "1.png")
    image = {"file_name": "1.png", "id": 1, "height": 64, "width": 80}
    odd = [{"id": 1, "image_id": 1, "bbox": [1]}, {"id": 1, "image_id": 1, "ignore": 1}]
    assert len(open_source(register([image], odd))) == 1
    with pytest.raises(UserError, match=r"odd_files_1.*image 1 \(2.png\): 1.png has the same id"):
        open_source(register([image, {**image, "file_name": "2.png"}], odd))
    with pytest.raises(UserError, match="odd_files_2.*cannot be read: ValueError: .*'images' must be a list"):
        open_source(register(None, odd))
