import csv
import json

import pytest
from click.testing import CliRunner

from mrcnn_ext.cli.compare import command
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
    done = CliRunner().invoke(command, [*arguments, "--samples", "50", "--csv", str(tmp_path / "out.csv")])
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
        ('{"images": []}', "not a list of COCO results"),
    ],
)
def test_no_results(truth, tmp_path, content, message):
    run = tmp_path / "run"
    run.mkdir() if content is None else run.write_text(content)
    done = CliRunner().invoke(command, [str(run), "--truth", str(truth)])
    assert isinstance(done.exception, ValueError) and message in str(done.exception)


def test_no_truth(truth, tmp_path):
    pytest.importorskip("detectron2")
    (tmp_path / "a.json").write_text(json.dumps(results(truth, 0)))
    done = CliRunner().invoke(command, [str(tmp_path / "a.json")])
    assert "give --truth" in str(done.exception)
    done = CliRunner().invoke(command, [str(tmp_path / "a.json"), "--truth", "coco_2017_vl"])
    assert "neither a file nor a registered dataset; did you mean coco_2017_val" in str(done.exception)
