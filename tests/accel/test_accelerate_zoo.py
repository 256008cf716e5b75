"""Every architecture of detectron2's model zoo through accelerate: the same answers, or refused by name."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")
import detectron2.model_zoo
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.modeling import accelerate

pytestmark = pytest.mark.detectron2

ROOT = Path(detectron2.model_zoo.__file__).parent / "configs"
REFUSED = {"RetinaNet", "ProposalNetwork", "SemanticSegmentor"}
SIZE = (128, 160)


def narrow(file):
    """The config with few channels and ResNet-50, and everything else as in the file."""
    cfg = get_cfg()
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.FREEZE_AT", 0])
    cfg.merge_from_list(["MODEL.PIXEL_STD", [57.375, 57.120, 58.395], "MODEL.FPN.OUT_CHANNELS", 32])
    resnets = cfg.MODEL.RESNETS
    resnets.NUM_GROUPS = min(resnets.NUM_GROUPS, 4)
    width = 32 if resnets.NORM == "GN" else 8  # group normalisation has 32 groups
    resnets.DEPTH, resnets.RES2_OUT_CHANNELS, resnets.STEM_OUT_CHANNELS = 50, 32, width
    resnets.WIDTH_PER_GROUP = width // resnets.NUM_GROUPS
    for head in (cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD):
        head.CONV_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = [32] * len(cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    # All scores of random weights are small.
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return cfg


def architectures():
    """One config of each model that differs in more than its depth."""
    found = {}
    for file in sorted(ROOT.glob("*/*.yaml")):
        if file.parent.name != "quick_schedules" and not file.name.startswith("Base"):
            found.setdefault(narrow(file).MODEL.dump(), f"{file.parent.name}/{file.stem}")
    return list(found.values())


def inputs(cfg):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)
    item = {"image": image, "height": 120, "width": 150}
    if not cfg.MODEL.LOAD_PROPOSALS:
        return [item]
    corners = torch.rand(30, 2, generator=generator) * 80
    proposals = Instances(SIZE, proposal_boxes=Boxes(torch.cat([corners, corners + 40], dim=1)))
    proposals.objectness_logits = torch.rand(30, generator=generator)
    return [item | {"proposals": proposals}]


def same_boxes(instances, stock):
    """Share of stock's boxes of a score above the median that ours has, to 0.01 pixels."""
    a, b = stock.pred_boxes.tensor[stock.scores >= stock.scores.median()], instances.pred_boxes.tensor
    return (torch.cdist(a, b, p=torch.inf).amin(dim=1) < 0.01).float().mean()


@pytest.mark.parametrize("name", architectures())
def test_zoo(name):
    cfg = narrow(ROOT / f"{name}.yaml")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.META_ARCHITECTURE in REFUSED:
        with pytest.raises(TypeError, match=f"GeneralizedRCNN .*, got {cfg.MODEL.META_ARCHITECTURE}"):
            accelerate(model)
        return
    batch = inputs(cfg)
    calibrate(model, batch)
    stock, ours = (m(batch)[0] for m in (model.requires_grad_(False), accelerate(model, bf16=False)))
    assert stock.keys() == ours.keys()
    assert len(stock["instances"]) > 10
    assert ours["instances"].get_fields().keys() == stock["instances"].get_fields().keys()
    assert same_boxes(ours["instances"], stock["instances"]) > 0.95
    if "sem_seg" in stock:
        assert (ours["sem_seg"].argmax(0) == stock["sem_seg"].argmax(0)).float().mean() > 0.99
    fast = accelerate(model, bf16=True)
    assert len(fast(batch)[0]["instances"]) > 10
    assert re.search(r"pooler +[1-9]", str(fast.acceleration)), fast.acceleration
