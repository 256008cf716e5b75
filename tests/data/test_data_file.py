"""A data file names the parts of a dataset for the train command."""

import json

import numpy as np
import pytest
import yaml
from coco_examples import base
from PIL import Image

from mrcnn_ext.data.data_file import read_data_file


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes a folder of data in COCO's format with a data file, goes elsewhere, and gives the file's path."""
    folder = tmp_path / "skis"
    (folder / "images").mkdir(parents=True)
    (folder / "annotations.json").write_text(json.dumps(base()))
    monkeypatch.chdir(tmp_path)

    def write(content, name="skiers.yaml"):
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / name).write_text(text)
        return f"skis/{name}"

    return write


PAIR = ["annotations.json", "images"]


def test_paths_start_from_the_file_and_names_from_its_name(make):
    data = read_data_file(make({"train": PAIR, "val": PAIR, "test": PAIR, "colors": [[1, 2, 3], [4, 5, 6]]}))
    described = {"colors": [[1, 2, 3], [4, 5, 6]]}
    assert data.train == ("skiers_train",) and data.test == ("skiers_val",)
    assert data.coco_format == [
        [f"skiers_{part}", "skis/annotations.json", "skis/images", described]
        for part in ("train", "val", "test")
    ]
    assert read_data_file(make({"test": PAIR, "name": "on snow"})).test == ("on_snow_test",)
    assert read_data_file(make({"train": [PAIR, PAIR]})).train == ("skiers_train_1", "skiers_train_2")


@pytest.mark.detectron2
def test_it_registers(make, catalog):
    from detectron2.data import MetadataCatalog

    from mrcnn_ext.engine.setup import register_datasets

    register_datasets(read_data_file(make({"train": PAIR, "names": ["skier", "sledge"]})).coco_format)
    assert MetadataCatalog.get("skiers_train").thing_classes == ["skier", "sledge"]


def test_yolos_file_is_converted_anew_at_each_call(make, tmp_path):
    path = make({"train": "images", "names": {0: "dog", 1: "cat"}, "nc": 2}, "data.yaml")
    Image.fromarray(np.zeros((20, 40, 3), np.uint8)).save(tmp_path / "skis" / "images" / "1.png")
    (tmp_path / "skis" / "labels").mkdir()
    for label, name in ((0, "dog"), (1, "cat")):
        (tmp_path / "skis" / "labels" / "1.txt").write_text(f"{label} 0.5 0.5 0.5 0.5\n")
        data = read_data_file(path, tmp_path)
        assert data.train == ("skis_train",) and data.test == ()
        (entry,) = data.coco_format
        content = json.loads((tmp_path / "skis_train.coco.json").read_text())
        assert entry[1:] == [str(tmp_path / "skis_train.coco.json"), "skis"]
        assert content["images"][0]["file_name"] == "images/1.png"
        names = {category["id"]: category["name"] for category in content["categories"]}
        assert [names[a["category_id"]] for a in content["annotations"]] == [name]


@pytest.mark.parametrize(
    "content, expected",
    [
        ("a: [", "skiers.yaml is no yaml: .*line 1"),
        ("just text", "must have keys, such as train: .*got 'just text'"),
        ({"names": ["a"]}, "has none of train, val, test"),
        ({"train": PAIR, "sigma": "coco"}, "unknown key 'sigma'; did you mean 'sigmas'"),
        ({"train": [*PAIR, "more"]}, r"train must be \[annotation file, image folder\], .* got \['annot"),
        ({"train": ["a.json", "images"]}, "train: there is no annotation file skis/a.json"),
        ({"val": ["annotations.json", "photos"]}, "val: there is no image folder skis/photos"),
        ({"train": PAIR, "name": 3}, "name must be what to call the data, got 3"),
        ({"train": "photos", "names": ["a"]}, "its 'train', .*photos, does not exist"),
    ],
)
def test_what_is_wrong_is_named(make, content, expected):
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        read_data_file(make(content))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.yaml: there is no such file"):
        read_data_file(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match="no such file, but a folder"):
        read_data_file(tmp_path)
