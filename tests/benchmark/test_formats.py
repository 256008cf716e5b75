"""One checkpoint in every form, in this process."""

import csv

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2")
import torch
from click.testing import CliRunner

from mrcnn_ext.benchmark import formats
from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.engine import Trainer, load_config
from mrcnn_ext.engine.description import describe
from mrcnn_ext_command import command

pytestmark = pytest.mark.detectron2

SMALL = [
    *"MODEL.KEYPOINT_ON False MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16".split(),
    *"MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 INPUT.MIN_SIZE_TEST 64".split(),
    *"MODEL.RPN.PRE_NMS_TOPK_TEST 20 MODEL.RPN.POST_NMS_TOPK_TEST 5 TEST.DETECTIONS_PER_IMAGE 5".split(),
]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    cfg = load_config(
        get_config_file("quickstart.yaml"), [*SMALL, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    )
    model = Trainer.build_model(cfg)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(100)  # sure of what it finds
    torch.save({"model": model.state_dict(), "about": describe(cfg)}, tmp_path / "model.pth")
    (tmp_path / "photos").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{k}.png"), pixels)
    return tmp_path


def test_forms_beside_each_other(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "nncf" else name)
    forms = "stock,accelerated-float32,torchscript,openvino-int8"
    words = ["model.pth", "--images", "photos", "--forms", forms, "--runs", "1", "--output", "out"]
    done = CliRunner().invoke(command, ["benchmark", "formats", *words])
    assert done.exit_code == 0, done.output
    with open("out/formats.csv") as file:
        rows = {row["form"]: row for row in csv.DictReader(file)}
    assert list(rows) == forms.split(",")
    for form in ("stock", "accelerated-float32", "torchscript"):
        row = rows[form]
        assert float(row["ms"]) > 0 and float(row["size"]) > 0 and not row["note"], row
        assert int(row["detections"]) > 0 and float(row["matched"]) == 1 and float(row["box_px"]) < 0.05
    assert rows["openvino-int8"]["note"] == "not installed: nncf" and not rows["openvino-int8"]["ms"]
    assert "| openvino-int8 | | | | | not installed: nncf |" in done.output
    assert [path.name for path in (checkpoint / "out").glob("*.ts")] == ["torchscript.ts"]
    done = CliRunner().invoke(command, ["benchmark", "formats", *words[:3], "--forms", "tflite"])
    assert "forms: 'tflite' is none of stock, accelerated-float32" in str(done.exception)
