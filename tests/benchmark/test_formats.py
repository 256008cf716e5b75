"""One checkpoint in every form, in this process."""

import csv
import json

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
from mrcnn_ext.inference import load_predictor
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


@pytest.mark.parametrize("with_masks", [False, True])
def test_average_precisions_of_each_form(checkpoint, monkeypatch, with_masks):
    """What the model finds is the truth: of boxes it is right everywhere."""
    monkeypatch.chdir(checkpoint)
    loaded = load_predictor(None, "model.pth")
    images, annotations = [], []
    for k in (0, 1):
        images.append({"id": k + 1, "file_name": f"{k}.png", "height": 64, "width": 96})
        given = {"image": loaded.read(f"photos/{k}.png"), "height": 64, "width": 96}
        with torch.no_grad():
            found = loaded.model.eval()([given])[0]["instances"]
        for (x0, y0, x1, y1), label in zip(
            found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), strict=True
        ):
            about = {"id": len(annotations) + 1, "image_id": k + 1, "category_id": label + 1, "iscrowd": 0}
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            annotations.append({**about, **box, **({"segmentation": polygon} if with_masks else {})})
    categories = [{"id": k, "name": f"class {k}"} for k in range(1, 9)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (checkpoint / "truth.json").write_text(json.dumps(content))
    (checkpoint / f"own_{with_masks}.yaml").write_text("val: [truth.json, photos]\n")
    words = ["model.pth", "--data", f"own_{with_masks}.yaml", "--forms", "stock,torchscript", "--runs", "1"]
    done = CliRunner().invoke(command, ["benchmark", "formats", *words, "--output", "out"])
    assert done.exit_code == 0, done.output
    with open("out/formats.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["form"] for row in rows] == ["stock", "torchscript"]
    assert all(float(row["box_AP"]) > 99 and int(row["detections"]) > 0 for row in rows)
    assert all(("mask_AP" in row) == with_masks and "keypoint_AP" not in row for row in rows)
    assert "Average Precision" not in done.output and "| box AP |" in done.output


def test_there_must_be_images_or_data(checkpoint):
    done = CliRunner().invoke(command, ["benchmark", "formats", str(checkpoint / "model.pth")])
    assert done.exit_code == 2 and "--images or --data" in done.output
