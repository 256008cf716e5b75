"""The paper's "fine + COCO" on Cityscapes by one command, from a detector trained on COCO's 80 classes: on generated
scenes in COCO's format, with its categories, and in Cityscapes' layout."""

import json
import re

import pytest

pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_cityscapes
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from mrcnn_ext.scenes import get_preset, write_dataset

pytestmark = pytest.mark.detectron2

SMALL = [
    *"MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.WIDTH_PER_GROUP 8".split(),
    *"MODEL.RESNETS.NORM BN MODEL.BACKBONE.FREEZE_AT 0 MODEL.FPN.OUT_CHANNELS 16".split(),
    *"MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0".split(),
    *"MODEL.RPN.POST_NMS_TOPK_TRAIN 30 MODEL.RPN.POST_NMS_TOPK_TEST 30 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 8".split(),
    *"INPUT.MIN_SIZE_TRAIN (64,64) INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0".split(),
    *"TEST.DETECTIONS_PER_IMAGE 20 SOLVER.IMS_PER_BATCH 2 SOLVER.STEPS () VAL_LOSS.ENABLED False".split(),
    *("--num-gpus", 0),
]
CITYSCAPES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """coco.yaml in the working directory, and Cityscapes under its names in detectron2."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cityscapes"
    write_dataset(root, get_preset("easy", empty=0.0), 2, 1, seed=2)
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        things = [category for category in COCO_CATEGORIES if category["isthing"]]
        ids = {category["name"]: category["id"] for category in things} | {"rider": 1}
        content["categories"] = [{"id": category["id"], "name": category["name"]} for category in things]
        for annotation in content["annotations"]:
            annotation["category_id"] = ids[names[annotation["category_id"]]]
            annotation.pop("keypoints", None)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    (tmp_path / "coco.yaml").write_text("train: [train.json, cityscapes]\nval: [val.json, cityscapes]\n")

    fine = [name for name in DatasetCatalog if "cityscapes_fine" in name]
    before = {name: (DatasetCatalog[name], MetadataCatalog[name]) for name in fine}
    for name in before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_all_cityscapes(str(tmp_path))
    yield
    for name in {*before, "coco_train", "coco_val"} & set(DatasetCatalog):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for name, (load, metadata) in before.items():
        DatasetCatalog.register(name, load)
        MetadataCatalog[name] = metadata


def test_one_command_from_coco_to_cityscapes(run, data, tmp_path):
    run("train", "data=coco.yaml", "model=mask_rcnn_R_50_FPN", "MODEL.WEIGHTS", "", *SMALL, "--output", "coco",
        "SOLVER.MAX_ITER", 2)  # fmt: skip
    start = torch.load("coco/model_final.pth")
    coco_names = start["about"]["metadata"]["thing_classes"]
    assert len(coco_names) == 80 and "rider" not in coco_names

    printed = run(
        "train",
        *("data=cityscapes", "model=Cityscapes/mask_rcnn_R_50_FPN_from_COCO", "weights=coco/model_final.pth"),
        *(*SMALL, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-12, "--output", "fine"),
    )
    assert (
        "mapped by class: person, rider from person, car, truck, bus, train, motorcycle, bicycle" in printed
    ), printed
    total = len([name for name in start["model"] if not name.endswith("num_batches_tracked")])
    assert f"model_final.pth: {total} of the model's {total} tensors are from it" in printed
    assert re.search(r"copypaste: Task: segm\n.*AP,AP50\n.*copypaste: [\d.]+,[\d.]+", printed), printed

    trained = torch.load("fine/model_final.pth")
    assert trained["about"]["metadata"]["thing_classes"] == CITYSCAPES
    weights, before = trained["model"], start["model"]
    rows = [coco_names.index("person" if name == "rider" else name) for name in CITYSCAPES]
    scores, masks = "roi_heads.box_predictor.cls_score.weight", "roi_heads.mask_head.predictor.weight"
    torch.testing.assert_close(weights[scores], before[scores][[*rows, 80]])
    torch.testing.assert_close(weights[masks], before[masks][rows])
    torch.testing.assert_close(weights["backbone.fpn_output2.weight"], before["backbone.fpn_output2.weight"])
