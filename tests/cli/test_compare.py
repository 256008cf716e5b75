import csv
import json
import re
import shutil

import pytest
from click.testing import CliRunner

from mrcnn_ext.cli.compare import command as compare_command
from mrcnn_ext.cli.report import command as report_command
from mrcnn_ext.scenes.coco_format import KEYPOINT_NAMES


@pytest.fixture
def truth(tmp_path):
    keypoints = [v for k in range(len(KEYPOINT_NAMES)) for v in (3 + k, 4 + k, 2)]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 60} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(KEYPOINT_NAMES), "skeleton": []}],
        "annotations": [
            {
                **{
                    "id": i,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": [2, 2, 20, 20],
                    "iscrowd": 0,
                    "area": 400,
                },
                **{
                    "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]],
                    "keypoints": keypoints,
                    "num_keypoints": 17,
                },
            }
            for i in (1, 2, 3)
        ],
    }
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    return path


def results(truth, shift):
    return [
        {
            **{"image_id": a["image_id"], "category_id": 1, "score": 0.9, "keypoints": a["keypoints"]},
            **{"bbox": [a["bbox"][0] + shift * (a["image_id"] - 1), *a["bbox"][1:]]},
        }
        for a in json.loads(truth.read_text())["annotations"]
    ]


def test_runs_beside_each_other(truth, tmp_path):
    folder = tmp_path / "run" / "inference"
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text(json.dumps(results(truth, 4)))
    (tmp_path / "perfect.json").write_text(json.dumps(results(truth, 0)))
    arguments = [str(tmp_path / "run"), str(tmp_path / "perfect.json"), "--truth", str(truth)]
    done = CliRunner().invoke(
        compare_command, [*arguments, "--samples", "50", "--csv", str(tmp_path / "out.csv")]
    )
    assert done.exit_code == 0, done.output
    assert "100.00 [100.00, 100.00]" in done.output and "| keypoints |" in done.output
    with open(tmp_path / "out.csv") as file:
        rows = {(r["task"], r["run"][-12:], r["metric"]): r for r in csv.DictReader(file)}
    worse = rows["bbox", str(tmp_path / "run")[-12:], "AP"]
    better = rows["bbox", "perfect.json", "AP"]
    assert (
        float(better["difference"]) == pytest.approx(100 - float(worse["value"]))
        and worse["difference"] == ""
    )
    assert float(worse["low"]) <= float(worse["value"]) <= float(worse["high"])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "neither a file of COCO results nor a folder with a coco_instances_results.json"),
        ('{"images": []}', "must hold a list of {'image_id'"),
    ],
)
def test_no_results(truth, tmp_path, content, message):
    run = tmp_path / "run"
    run.mkdir() if content is None else run.write_text(content)
    done = CliRunner().invoke(compare_command, [str(run), "--truth", str(truth)])
    assert isinstance(done.exception, ValueError) and message in str(done.exception)


def wrong(truth, **changes):
    records = results(truth, 0)
    records[1].update(changes)
    return json.dumps(records)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_id": 77}, "record 1 .* has image_id 77, which is none of the annotation file's images"),
        ({"category_id": 5}, "record 1 .* has category_id 5"),
        ({"score": float("nan")}, "record 1 .*: score must be a finite number, got nan"),
        ({"score": "0.9"}, "score must be a finite number, got '0.9'"),
        ({"bbox": [1, 2, 3]}, "bbox must be four finite numbers"),
        ({"segmentation": [[1, 1, 9, 1, 9, 9]]}, "record 0 .* lacks segmentation, which others have"),
        ({"score": None}, "score must be a finite number, got None"),
        ({"image_id": [1]}, "record 1 .*: image_id must be an id of the annotation file, got .1."),
        ({"segmentation": []}, "segmentation must be an encoding .* or a list of polygons, got .."),
        ({"segmentation": "abc"}, "segmentation must be an encoding .* got 'abc'"),
        (
            {"segmentation": {"size": [60, 61], "counts": "abc"}},
            "mask is of the size .60, 61. .* of .60, 60.",
        ),
    ],
)
def test_records_are_checked(truth, tmp_path, changes, message):
    (tmp_path / "a.json").write_text(wrong(truth, **changes))
    for command, arguments in (
        (compare_command, ["a.json", "--truth", str(truth)]),
        (report_command, [str(truth), "a.json"]),
    ):
        with CliRunner().isolated_filesystem(tmp_path):
            shutil.copy(tmp_path / "a.json", "a.json")
            done = CliRunner().invoke(command, arguments)
        assert isinstance(done.exception, ValueError) and re.search(message, str(done.exception))


def test_images_are_told_by_the_names_beside_the_results(truth, tmp_path):
    records = results(truth, 0)
    for record in records:
        record["image_id"] = 4 - record["image_id"]
    (tmp_path / "photos.json").write_text(json.dumps(records))
    arguments = [str(tmp_path / "photos.json"), "--truth", str(truth), "--samples", "5"]
    images = [{"id": 4 - i, "file_name": f"{i}.png"} for i in (1, 2, 3)]
    (tmp_path / "photos.images.json").write_text(json.dumps({"images": images}))
    assert (
        "| bbox | " in (output := CliRunner().invoke(compare_command, arguments).output)
        and " 100.00" in output
    )
    images[0]["file_name"] = "other.png"
    (tmp_path / "photos.images.json").write_text(json.dumps({"images": images}))
    done = CliRunner().invoke(compare_command, arguments)
    assert (
        "1 of its 3 images are none of the annotation file's, by the names in photos.images.json (other.png)"
        in str(done.exception)
    )


def test_damaged_names_beside_the_results(truth, tmp_path):
    (tmp_path / "photos.json").write_text(json.dumps(results(truth, 0)))
    for content in ('{"images": [{"id": 1}]}', "[1", "[]"):
        (tmp_path / "photos.images.json").write_text(content)
        done = CliRunner().invoke(compare_command, [str(tmp_path / "photos.json"), "--truth", str(truth)])
        assert re.search(r"photos.images.json must hold the images of photos.json", str(done.exception))


def test_a_run_that_found_nothing_scores_zero(truth, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(results(truth, 0)))
    (tmp_path / "none.json").write_text("[]")
    runs = [str(tmp_path / "a.json"), str(tmp_path / "none.json")]
    done = CliRunner().invoke(compare_command, [*runs, "--truth", str(truth), "--samples", "5"])
    assert f"| bbox | {runs[1]} | 0.00 [0.00, 0.00]" in done.output
    done = CliRunner().invoke(compare_command, [*runs, "--truth", str(truth), "--csv", runs[1]])
    assert "is one of the runs" in str(done.exception)


def test_a_table_that_cannot_be_written_leaves_the_one_before(truth, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(results(truth, 0)))
    table = tmp_path / "out.csv"
    table.write_text("before")

    class Full:
        def __init__(self, file, **options):
            self.file = file

        def writerow(self, row):
            self.file.write("task")
            raise OSError("no more")

    monkeypatch.setattr(csv, "writer", Full)
    arguments = [str(tmp_path / "a.json"), "--truth", str(truth), "--samples", "5", "--csv", str(table)]
    done = CliRunner().invoke(compare_command, arguments)
    assert isinstance(done.exception, OSError) and table.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "out.csv", "val.json"]


def test_a_run_on_other_data_is_noted(truth, tmp_path):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mrcnn_ext.data import register_coco_format

    for run, dataset in (("a", "compared_val"), ("b", "other_val")):
        folder = tmp_path / run / "inference" / dataset
        folder.mkdir(parents=True)
        (folder / "coco_instances_results.json").write_text(json.dumps(results(truth, 0)))
    register_coco_format("compared_val", str(truth), str(tmp_path))
    try:
        runs = [str(tmp_path / "a"), str(tmp_path / "b")]
        for named, notes in (("compared_val", [runs[1]]), (str(truth), [])):
            done = CliRunner().invoke(compare_command, [*runs, "--truth", named, "--samples", "5"])
            found = re.findall(r"note: (\S+) was evaluated on other_val, .* beside compared_val", done.output)
            assert done.exit_code == 0 and found == notes, done.output
    finally:
        DatasetCatalog.remove("compared_val")
        MetadataCatalog.remove("compared_val")


def test_no_truth(truth, tmp_path):
    pytest.importorskip("detectron2")
    (tmp_path / "a.json").write_text(json.dumps(results(truth, 0)))
    done = CliRunner().invoke(compare_command, [str(tmp_path / "a.json")])
    assert "give --truth" in str(done.exception)
    done = CliRunner().invoke(compare_command, [str(tmp_path / "a.json"), "--truth", "coco_2017_vl"])
    assert "neither a file nor a registered dataset; did you mean coco_2017_val" in str(done.exception)
