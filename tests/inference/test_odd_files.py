"""Files that are no pictures, and pictures that would be read wrongly: left alone, or named, and never read wrongly."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import load_predictor, predict, predictions
from mrcnn_ext.inference.sources import open_source


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
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match="list.txt: it is text, neither an image .* nor a video"):
        open_source(str(tmp_path / "list.txt"))
