"""Torchvision's data and metrics come through the same reading as detectron2's."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from mrcnn_ext.integrations.torchvision.data import CocoInstances
from mrcnn_ext.integrations.torchvision.evaluation import evaluate_cityscapes, evaluate_coco


def content(height=20, width=30, **changes):
    annotation = {
        "id": 0,
        "image_id": 1,
        "category_id": 3,
        "bbox": [2, 3, 10, 6],
        "segmentation": [[2, 3, 12, 3, 12, 9, 2, 9]],
        "keypoints": [2, 3, 2, 11, 3, 1, 0, 0, 0],
        **changes,
    }
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": height, "width": width}],
        "annotations": [annotation],
        "categories": [{"id": 3, "name": "person", "keypoints": ["eyeL", "eyeR", "cleft"]}],
    }


@pytest.fixture
def make(tmp_path):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)

    def make(data, flip=False, image=None, **options):
        image = Image.fromarray(pixels) if image is None else image
        image.save(tmp_path / "1.png", **options)
        (tmp_path / "data.json").write_text(json.dumps(data))
        return CocoInstances(str(tmp_path), str(tmp_path / "data.json"), flip=flip)

    return make


def test_images_are_turned_as_their_exif_data_say(make):
    exif = Image.Exif()
    exif[0x0112] = 6
    image, target = make(content(height=30, width=20), exif=exif)[0]
    assert image.shape == (3, 30, 20) and target["masks"].shape == (1, 30, 20)
    with pytest.raises(ValueError, match="1.png has height 30 and width 20 .* the annotations say 20 and 30"):
        make(content(), exif=exif)[0]


def test_deep_images_are_refused(make):
    with pytest.raises(OSError, match="1.png.*more than 8 bits a pixel"):
        make(content(), image=Image.fromarray(np.full((20, 30), 1000, np.uint16)))[0]


def test_mirrored_keypoints_change_sides_by_the_same_names(make):
    data = make(content(), flip=True)
    assert data._mirrored == [1, 0, 2]
    image, target = data[0]
    _, mirrored = data._mirror(image, target)
    places = {tuple(t["keypoints"][0, :, 0].tolist()) for t in (target, mirrored)}
    assert places <= {(2.5, 11.5, 0.0), (18.5, 27.5, 0.0)}


def test_data_without_segmentations_have_no_masks(make):
    data = content()
    del data["annotations"][0]["segmentation"]
    _, target = make(data)[0]
    assert "masks" not in target and len(target["boxes"]) == 1


def test_what_is_wrong_is_named(make):
    with pytest.raises(ValueError, match=r"image 1 \(1.png\), annotation id 0: its bbox must have 4 numbers"):
        make(content(bbox=[1, 2, 3]))
    with pytest.raises(ValueError, match="annotation id 0: it has 2 keypoints .*, but the dataset has 3"):
        make(content(keypoints=[1, 1, 2] * 2))


def test_sigmas_of_other_keypoints_are_asked_for(make):
    data = make(content())
    found = [{"image_id": 1, "category_id": 3, "score": 0.9, "bbox": [2, 3, 10, 6]}]
    found[0]["keypoints"] = [2.0, 3.0, 1.0, 11.0, 3.0, 1.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="3 keypoints .eyeL, eyeR, cleft, .... are not COCO's"):
        evaluate_coco(data, found, ("keypoints",))
    assert evaluate_coco(data, found, ("keypoints",), sigmas=[0.05] * 3)["keypoints"]["AP"] == pytest.approx(
        100
    )


def test_cityscapes_without_a_file_for_each_mask(make, tmp_path, monkeypatch):
    pytest.importorskip("cityscapesscripts")
    data = content(height=20, width=30)
    data["categories"] = [{"id": 3, "name": "person"}]
    data["images"][0]["file_name"] = "town_000000_000019_leftImg8bit.png"
    dataset = make(data)
    (tmp_path / "gt" / "town").mkdir(parents=True)
    ids = np.full((20, 30), 7, np.uint16)
    ids[3:18, 2:12] = 24001
    Image.fromarray(ids).save(tmp_path / "gt" / "town" / "town_000000_000019_gtFine_instanceIds.png")
    mask = np.zeros((20, 30), np.uint8, order="F")
    mask[3:18, 2:12] = 1
    found = [{"image_id": 1, "category_id": 3, "score": 0.9, "segmentation": mask_utils.encode(mask)}]

    def refuse(*args, **options):
        raise AssertionError("a picture is written")

    monkeypatch.setattr(Image.Image, "save", refuse)
    precisions = evaluate_cityscapes(dataset, found, str(tmp_path / "gt"))
    assert [precisions[key] for key in ("AP", "AP50", "AP-person")] == pytest.approx([100, 100, 100])
    data["categories"][0]["name"] = "horse"
    (tmp_path / "data.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="Cityscapes has no instances of 'horse'"):
        evaluate_cityscapes(
            CocoInstances(str(tmp_path), str(tmp_path / "data.json")), found, str(tmp_path / "gt")
        )
