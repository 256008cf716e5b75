"""tools/predict.py, run as a program."""

import json
import re

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.modeling import build_model

from mrcnn_ext.engine import load_config

pytestmark = pytest.mark.detectron2


@pytest.fixture(scope="module")
def weights(configs, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("predict") / "model.pth"
    torch.save({"model": build_model(load_config(configs.yaml)).state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_a_dataset_and_then_something_else(run, run_here, configs, weights, tmp_path, kind):
    output = tmp_path / "results.json"
    command = ["predict", "coco_2017_val_100", "--config-file", getattr(configs, kind), "--weights", weights]
    command += ["--output", output, "--min-score", 0.001, "--device", "cpu"]
    log = run(*command)
    results = json.loads(output.read_text())
    assert re.search(rf"results.json: {len(results)} results of 6 images\n", log) and "6/6" in log
    assert {record["image_id"] for record in results} == set(range(6))
    # Class 0 of the model is COCO's category 1.
    assert min(record["category_id"] for record in results) > 0
    assert all(record["score"] >= 0.001 and record["segmentation"]["size"] == [64, 80] for record in results)
    if kind == "yaml":  # the rest is the same program
        log = run_here(*command, "INPUT.MIN_SIZE_TEST", 48, code=2)
        message = f"error: {output} is of a run with other preprocessing: give what it was made with"
        assert log.splitlines()[-1].startswith(message)


def test_a_folder_with_a_damaged_image(run_here, configs, weights, datasets, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in (datasets / "coco" / "val2017").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "3.png").write_bytes(b"nothing")
    command = ["predict", folder, "--config-file", configs.yaml, "--weights", weights, "--output"]
    command += [tmp_path / "results.json", "--pictures", tmp_path / "drawn", "--no-accelerate"]
    log = run_here(*command, "--skip-unreadable", "TEST.DETECTIONS_PER_IMAGE", 7)
    assert re.search(r"results.json: \d+ results of 5 images\n", log)
    assert log.splitlines()[-1].startswith("skipped, cannot be read: 3.png: ")
    assert len(list((tmp_path / "drawn").iterdir())) == 5
