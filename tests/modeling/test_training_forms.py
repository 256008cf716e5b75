"""Channels-last models and bf16 autocast train, our parts and stock ones alike, to the losses of float32."""

import copy

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

pytestmark = pytest.mark.detectron2

OURS = [
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.ROI_HEADS.NAME", "FusedROIHeads"),
    *("MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead", "MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"),
]


def losses_of(model, batch, autocast=False):
    torch.manual_seed(0)
    model.zero_grad()
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    return {name: float(loss.detach()) for name, loss in losses.items()}


@pytest.mark.parametrize(
    "opts, autocast", [([], False), (OURS, False), (OURS, True)], ids=["stock", "ours", "ours bf16"]
)
def test_channels_last(tiny_cfg, make_batch, opts, autocast):
    batch = make_batch([[4, 6, 40, 50], [20, 10, 70, 60]], [[10, 10, 30, 44]])
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*opts))
    expected = losses_of(model, batch)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    losses = losses_of(last, batch, autocast)
    assert losses.keys() == expected.keys()
    # Proposals move with bf16, and with them what is sampled.
    assert losses == pytest.approx(expected, rel=0.05 if autocast else 1e-3)
