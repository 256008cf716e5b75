"""tools/check_dataset.py: the report, the pictures, the mended copy and the exit codes."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_examples import change, check_main, with_keypoints
from PIL import Image

from mrcnn_ext.data.coco_file import CocoFile
from mrcnn_ext.data.problems import Problems
from mrcnn_ext.data.report import FINE, WRONG
from mrcnn_ext.data.survey import survey_coco_file, write_repaired

TOOL = Path(__file__).resolve().parents[2] / "tools" / "check_dataset.py"


def odd(content):
    """One of everything."""
    with_keypoints(content)
    first, second = content["annotations"]
    first.update(id=0, iscrowd="0", area=None, bbox=["2", 2, 10, 10])
    content["images"] += [
        {"id": 2, "file_name": "2.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "gone.png", "height": 20, "width": 30},
        {"id": 4, "file_name": "4.png", "height": 20, "width": 30},
        {"id": 4, "file_name": "5.png", "height": 20, "width": 30},
    ]
    for number, values in enumerate(
        [
            {"category_id": 9},
            {"bbox": [1, 2]},
            {"image_id": 3},
            {"image_id": 4},
            {"image_id": 77},
            {"bbox": [2, 2, 0, 0], "segmentation": []},
            {"iscrowd": 1},
            {"keypoints": [], "segmentation": [[1, 1, 2, 2]]},
        ]
    ):
        content["annotations"].append({**second, "id": 10 + number, **values})


@pytest.fixture
def odd_file(write, tmp_path):
    path = write(odd)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    for name in ("4.png", "5.png"):
        Image.new("RGB", (30, 20)).save(tmp_path / name)
    return path


def test_the_report_tells_all_at_once(odd_file, tmp_path, capsys):
    assert check_main([odd_file, "--images", str(tmp_path), "--quiet"]) == WRONG
    report = capsys.readouterr().out
    assert "4 images, 3 of them with objects; 5 objects of 2 classes, 10 annotations" in report
    assert " 1  person      1       0      0    1       0" in report
    assert " 2  car         4       0      0    4       1" in report
    assert re.search("nose +4 +0 +1\n", report)
    errors, mended = report.split("Mended when it is read, or left out:")
    for expected in (
        "1 x image 1 (1.png), annotation id 10: category_id 9 is not among the file's categories (1, 2)",
        "1 x image 1 (1.png), annotation id 11: its bbox must have 4 numbers",
        "1 x image 4 (5.png): 4.png has the same id",
        "1 x image 3 (gone.png): the file does not exist",
    ):
        assert expected in errors
    for expected in (
        "1 x image 77 (not in the file), annotation id 14: the file has no image of this id",
        "annotation id 15: its bbox [2.0, 2.0, 0.0, 0.0] is empty",
        "1 of its 10 annotations have an id that is missing, or no whole number above 0: all get new ones",
        "annotation id 0: its bbox has numbers written as text",
        "annotation id 0: it has no area: that of its mask is taken",
        "annotation id 17: nothing of its segmentation can be drawn",
    ):
        assert expected in mended


def test_the_mended_copy_is_right(odd_file, tmp_path, capsys):
    mended = tmp_path / "mended.json"
    arguments = [odd_file, "--images", str(tmp_path), "--quiet"]
    assert check_main([*arguments, "--repair", str(mended)]) == WRONG
    told = capsys.readouterr().out
    assert f"{mended}: 2 images, 4 annotations; 3 images and 6 annotations are left out, and the rest" in told
    assert check_main([str(mended), "--images", str(tmp_path), "--quiet", "--strict"]) == FINE
    assert "Nothing is wrong with it." in capsys.readouterr().out
    content = json.loads(mended.read_text())
    assert [image["file_name"] for image in content["images"]] == ["1.png", "2.png"]
    ids = {annotation["id"] for annotation in content["annotations"]}
    assert len(ids) == 4 and min(ids) > 0
    first = content["annotations"][0]
    assert first["bbox"] == [2, 2, 10, 10] and first["area"] == 100 and first["iscrowd"] == 0
    assert first["num_keypoints"] == 17 and "segmentation" not in content["annotations"][-1]
    assert not list(tmp_path.glob("*.tmp"))
    survey = survey_coco_file(odd_file)
    with pytest.raises(ValueError, match="is the file that is to be repaired"):
        write_repaired(survey, odd_file)


def test_compressed_masks_survive_the_mending(write, tmp_path):
    path = write(change(segmentation={"size": [20, 30], "counts": [100, 50, 450]}, id=0))
    write_repaired(survey_coco_file(path), tmp_path / "mended.json")
    (first, second) = CocoFile(tmp_path / "mended.json", Problems("mended")).annotations()
    assert first["area"] == 100 and isinstance(first["segmentation"]["counts"], str) and second["id"] == 2


def test_pictures_of_samples_and_of_what_is_odd(odd_file, tmp_path, capsys):
    folder = tmp_path / "drawn"
    arguments = [
        odd_file,
        "--images",
        str(tmp_path),
        "--quiet",
        "--pictures",
        str(folder),
        "--num-pictures",
        "1",
    ]
    assert check_main(arguments) == WRONG
    assert sorted(path.name for path in folder.iterdir()) == ["1_1.jpg", "4_4.jpg", "page_1.jpg"]
    # Enlarged, so that what is drawn can be read.
    drawn = Image.open(folder / "1_1.jpg")
    assert drawn.size == (30 * 24, 20 * 24)
    plain = Image.open(tmp_path / "1.png").convert("RGB").resize(drawn.size, Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(drawn, int) - np.asarray(plain)).max() > 50
    assert Image.open(folder / "page_1.jpg").size == (1600, 540)


def test_exit_codes_for_scripts(write, tmp_path, monkeypatch, capsys):
    assert check_main([write(), "--images", str(tmp_path), "--quiet"]) == FINE
    monkeypatch.setattr(sys, "argv", [str(TOOL), str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as missing:
        runpy.run_path(str(TOOL), run_name="__main__")
    message = capsys.readouterr().err
    assert missing.value.code == 2 and message.startswith("error: ") and "none.json" in message


def test_what_is_mended_matters_to_the_strict(write, tmp_path):
    path = write(change(area=None))
    assert check_main([path, "--images", str(tmp_path), "--quiet"]) == FINE
    assert check_main([path, "--images", str(tmp_path), "--quiet", "--strict"]) == WRONG


@pytest.mark.detectron2
def test_registered_datasets_by_name(register, catalog, capsys, tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mrcnn_ext.data import load_dataset

    name = register(with_keypoints)
    assert check_main([name, "--quiet"]) == FINE
    first = capsys.readouterr().out
    dicts = load_dataset(name)
    DatasetCatalog.register("in_python", lambda: dicts)
    metadata = MetadataCatalog.get(name)
    MetadataCatalog.get("in_python").set(
        thing_classes=metadata.thing_classes, keypoint_names=metadata.keypoint_names
    )
    assert check_main(["in_python", "--quiet"]) == FINE
    second = capsys.readouterr().out
    assert (
        first.split("objects", 1)[1].split("id  class")[0]
        == second.split("objects", 1)[1].split("id  class")[0]
    )
    assert re.search("nose +2", first) and re.search("nose +2", second)
    dicts[0]["annotations"][0]["bbox"] = [1]
    assert check_main(["in_python", "--quiet"]) == WRONG
    with pytest.raises(ValueError, match="'no_such_data' is not registered"):
        check_main(["no_such_data"])


def test_all_parts_of_a_data_file(write, tmp_path, capsys):
    parts = {"train": [write(), str(tmp_path)], "val": [write(change(bbox=[1])), str(tmp_path)]}
    path = tmp_path / "skiers.yaml"
    path.write_text(json.dumps(parts))
    drawn = tmp_path / "drawn"
    assert check_main([str(path), "--quiet", "--pictures", str(drawn)]) == WRONG
    report = capsys.readouterr().out
    train, val = report.split("\nskiers_val:", 1)
    assert train.startswith("skiers_train:") and "Nothing is wrong with it." in train
    assert "its bbox must have 4 numbers" in val
    assert (drawn / "skiers_train" / "1_1.jpg").is_file()
    with pytest.raises(ValueError, match="--repair writes a copy of one annotation file: name it instead of"):
        check_main([str(path), "--repair", "x.json"])


def test_parts_of_a_data_file_have_their_classes_in_one_order(write, tmp_path, capsys):
    parts = {"train": [write(), str(tmp_path)], "val": [write(), str(tmp_path)]}
    content = json.loads(Path(parts["val"][0]).read_text())
    names = [category["name"] for category in content["categories"]]
    for category, name in zip(content["categories"], names[::-1], strict=True):
        category["name"] = name
    parts["val"][0] = str(tmp_path / "other.json")
    Path(parts["val"][0]).write_text(json.dumps(content))
    path = tmp_path / "skiers.yaml"
    path.write_text(json.dumps(parts))
    assert check_main([str(path), "--quiet"]) == WRONG
    assert "'skiers_train' and 'skiers_val' do not have the same order: class" in capsys.readouterr().out
