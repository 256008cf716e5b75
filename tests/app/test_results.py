"""Downloads are what they say: pycocotools reads the JSON, the archive holds all."""

import io
import json
import zipfile

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

pytest.importorskip("detectron2")

from mrcnn_ext.app.inputs import Picture, sample_scene
from mrcnn_ext.app.results import archive, coco_file, png, stem

pytestmark = pytest.mark.detectron2


def test_the_json_is_a_dataset_and_results(models, tmp_path):
    pictures = [sample_scene(0), Picture("film.mp4", sample_scene(1).data, frame=7)]
    found = [(picture, models[0].predict(picture).instances) for picture in pictures]
    names = {"keypoints": models[0].names.keypoints}
    text = coco_file(found, models[0].kinds, names)
    path = tmp_path / "predictions.json"
    path.write_text(text)
    coco = COCO(str(path))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["scene 0.png", "film.mp4"]
    assert coco.dataset["images"][1]["frame"] == 7
    assert len(coco.cats) == 8 and coco.cats[1]["name"] == "person" and len(coco.cats[1]["keypoints"]) == 17
    annotations = coco.loadAnns(coco.getAnnIds(1))
    instances = found[0][1]
    assert len(annotations) == len(instances) > 0
    for annotation, mask, label in zip(
        annotations, instances.pred_masks, instances.pred_classes, strict=True
    ):
        assert np.array_equal(coco.annToMask(annotation).astype(bool), mask.numpy())
        assert annotation["area"] == float(mask.sum()) and annotation["category_id"] == int(label) + 1
    results = coco.loadRes(json.loads(text)["annotations"])
    assert len(results.anns) == sum(len(one) for _, one in found)
    assert mask_util.area(results.anns[1]["segmentation"]) == annotations[0]["area"]


def test_classes_without_names_have_the_models_numbers(models):
    picture = sample_scene(0)
    instances = models[0].predict(picture).instances
    content = json.loads(coco_file([(picture, instances)], {}, {}))
    used = {int(label) for label in instances.pred_classes}
    assert {kind["id"] for kind in content["categories"]} == used
    assert all(kind["name"] == f"class {kind['id']}" for kind in content["categories"])


def test_what_is_not_finite_is_not_written(models):
    picture = sample_scene(0)
    instances = models[0].predict(picture).instances
    instances.pred_keypoints[0, 3, 2] = float("inf")
    instances.pred_keypoints[0, 4, 0] = float("nan")
    content = json.loads(coco_file([(picture, instances)], models[0].kinds, {}), parse_constant=pytest.fail)
    keypoints = content["annotations"][0]["keypoints"]
    assert keypoints[9:15] == [0] * 6 and keypoints[:3] != [0] * 3


def test_the_archive_holds_every_picture_once(noise):
    data = png(noise)
    pictures = [Picture("a.png", data), Picture("A.jpg", data), Picture("../../etc/passwd", data)]
    content = archive([(picture, data) for picture in pictures], "{}")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.namelist() == ["a.png", "A 2.png", "passwd.png", "predictions.json"]
        assert file.read("a.png") == data and file.read("predictions.json") == b"{}"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("C:\\photos\\cat.jpg", "cat"),
        ('x<y>:"z|?*.png', "x_y___z___"),
        ("..", "picture"),
        ("", "picture"),
        ("Zoë 2.jpeg", "Zoë 2"),
    ],
)
def test_names_suit_every_system(name, expected):
    assert stem(Picture(name, b"")) == expected
    assert stem(Picture(name, b"", frame=12)) == f"{expected}_000012"
