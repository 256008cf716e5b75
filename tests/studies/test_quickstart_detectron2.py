"""The quickstart's stock row is the same model of detectron2's own components."""

import pytest

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from torch.nn import BatchNorm2d

from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.studies.stock_components import STOCK_COMPONENTS

pytestmark = pytest.mark.detectron2


def models():
    for parts in ({}, STOCK_COMPONENTS):
        yield build_model(
            load_config(get_config_file("quickstart.yaml"), [x for p in parts.items() for x in p])
        )


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_stock_components_are_detectron2s_and_of_our_sizes():
    ours, stock = models()
    for name, child in stock.roi_heads.named_children():
        assert type(child).__module__.startswith("detectron2."), name
    for module in stock.backbone.modules():
        assert not type(module).__module__.startswith(("timm.", "mrcnn_ext.")), module
    assert size(stock.backbone) == size(ours.backbone)
    assert stock.backbone.output_shape() == ours.backbone.output_shape()
    assert size(stock.proposal_generator) == size(ours.proposal_generator)
    for part in ("box_head", "box_predictor", "mask_head"):
        assert size(getattr(stock.roi_heads, part)) == size(getattr(ours.roi_heads, part)), part
    # The stock keypoint head knows no normalisation: ours has a scale and a shift in place of each bias.
    scales = [norm.weight for norm in ours.roi_heads.keypoint_head.modules() if isinstance(norm, BatchNorm2d)]
    difference = size(ours.roi_heads.keypoint_head) - size(stock.roi_heads.keypoint_head)
    assert scales and difference == sum(scale.numel() for scale in scales)
