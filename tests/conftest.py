"""What every test shares: a small model's config and a batch for it, and one line that says what was skipped for want
of detectron2."""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("detectron2") is not None:
    from detectron2.config import get_cfg
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    from mrcnn_ext import add_mrcnn_ext_config

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # for synchronizations


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    for item in items:
        if _imports_detectron2(item.module):
            item.add_marker("detectron2")
        if find_spec("detectron2") is None and item.get_closest_marker("detectron2"):
            item.add_marker(pytest.mark.skip(reason="could not import 'detectron2'"))


@cache
def _imports_detectron2(module):
    """Such a module needs it, whether it says so or not."""
    return any(
        str(getattr(value, "__module__", None) or getattr(value, "__name__", "")).startswith("detectron2.")
        for value in vars(module).values()
    )


def pytest_terminal_summary(terminalreporter):
    if find_spec("detectron2") is not None:
        return
    skipped = {
        report.nodeid
        for report in terminalreporter.stats.get("skipped", ())
        if "could not import 'detectron2" in str(report.longrepr)
    }
    files = sorted(name for name in skipped if name.endswith(".py"))
    terminalreporter.section("detectron2 IS NOT INSTALLED", sep="!", red=True, bold=True)
    terminalreporter.line(
        f"SKIPPED {len(files)} test files and {len(skipped) - len(files)} tests of others that need detectron2 "
        "(get it with `make setup DETECTRON2=<pip requirement, URL or path>`):"
    )
    for name in files:
        terminalreporter.line(f"  {name}")


@pytest.fixture
def tiny_cfg():
    """Makes a config of a small FPN model for 64 px images with boxes, masks and keypoints of stock parts."""

    def make(*opts):
        cfg = get_cfg()
        add_mrcnn_ext_config(cfg)
        model = cfg.MODEL
        model.DEVICE = "cpu"
        model.MASK_ON = model.KEYPOINT_ON = True
        model.PIXEL_STD = [57.375, 57.120, 58.395]
        model.BACKBONE.NAME, model.BACKBONE.FREEZE_AT = "build_resnet_fpn_backbone", 0
        model.RESNETS.DEPTH, model.RESNETS.RES2_OUT_CHANNELS, model.RESNETS.NORM = 18, 64, "BN"
        model.RESNETS.OUT_FEATURES = model.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        model.TIMM.NAME, model.TIMM.ARGS.channels = "resnet18", [16, 32, 32, 64]
        model.FPN.OUT_CHANNELS = 32
        model.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        model.RPN.BATCH_SIZE_PER_IMAGE = 32
        model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = 50
        model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 20
        model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
        model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 3, 16
        model.ROI_HEADS.SCORE_THRESH_TEST = 0.0
        model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC, model.ROI_BOX_HEAD.FC_DIM = (
            "FastRCNNConvFCHead",
            1,
            32,
        )
        model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
        model.ROI_MASK_HEAD.NUM_CONV, model.ROI_MASK_HEAD.CONV_DIM = 1, 16
        model.ROI_KEYPOINT_HEAD.CONV_DIMS = (16, 16)
        cfg.TEST.DETECTIONS_PER_IMAGE = 5
        cfg.merge_from_list(list(opts))
        return cfg

    return make


@pytest.fixture
def make_batch():
    """Makes detectron2's input for images of the given boxes: noise, elliptical masks, random keypoints."""

    def make(*boxes_per_image, size=(64, 80), num_classes=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        height, width = size
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        batch = []
        for boxes in boxes_per_image:
            boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            x0, y0, x1, y1 = boxes[:, :, None, None].unbind(1)
            masks = ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1
            points = boxes[:, None, :2] + torch.rand(len(boxes), 17, 2, generator=generator) * (
                boxes[:, None, 2:] - boxes[:, None, :2]
            )
            visible = torch.randint(0, 3, (len(boxes), 17, 1), generator=generator)
            instances = Instances(size)
            instances.gt_boxes = Boxes(boxes)
            instances.gt_classes = torch.arange(len(boxes)) % num_classes
            instances.gt_masks = BitMasks(masks)
            instances.gt_keypoints = Keypoints(torch.cat([points, visible.float()], dim=2))
            image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
            batch.append({"image": image, "instances": instances, "height": height, "width": width})
        return batch

    return make


@pytest.fixture
def proposals(make_batch):
    """Foreground proposals with ground truth, as the ROI heads hand them to the heads: 2 images of 3 boxes, or of
    those given."""

    def make(*boxes_per_image):
        boxes_per_image = boxes_per_image or ([[4, 4, 40, 60], [9, 9, 30, 30]], [[8, 8, 70, 30]])
        per_image = [item["instances"] for item in make_batch(*boxes_per_image)]
        for instances in per_image:
            instances.proposal_boxes = Boxes(instances.gt_boxes.tensor + 1.5)
        return per_image

    return make
