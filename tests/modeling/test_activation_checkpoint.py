"""Activation checkpointing changes what is kept, and nothing else."""

import copy

import pytest

pytest.importorskip("detectron2")
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from mrcnn_ext.benchmark.step_profile import SavedTensors
from mrcnn_ext.engine import Trainer, UserError
from mrcnn_ext.modeling.activation_checkpoint import checkpoint_activations

pytestmark = pytest.mark.detectron2

TIMM = ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.ARGS", {})
BACKBONES = {
    "ResNet with batch norm": (),
    "frozen stages": ("MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.RESNETS.NORM", "FrozenBN"),
    "ConvNeXt": (*TIMM, "MODEL.TIMM.NAME", "test_convnext"),
    "ViT": (
        *("MODEL.BACKBONE.NAME", "build_timm_simple_pyramid_backbone", "MODEL.TIMM.NAME", "test_vit"),
        *("MODEL.TIMM.ARGS", {}, "MODEL.TIMM.OUT_FEATURES", ["res4"]),
        *("MODEL.FPN.IN_FEATURES", ["res4"], "MODEL.FPN.NORM", "LN"),
    ),
}


def step(model, batch):
    torch.manual_seed(0)
    with EventStorage(0), SavedTensors(model) as saved:
        losses = model(batch)
        sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, saved.bytes


@pytest.mark.parametrize("name", BACKBONES)
def test_the_same_step_with_less_memory(name, tiny_cfg, make_batch):
    torch.manual_seed(0)
    plain = build_model(tiny_cfg(*BACKBONES[name])).train()
    model = copy.deepcopy(plain)
    assert checkpoint_activations(model.backbone) > 0
    model = copy.deepcopy(model)  # as evaluation does
    batch = make_batch([[4, 4, 40, 60]], [[8, 8, 70, 30]], size=(128, 160))
    expected_losses, expected, kept = step(plain, batch)
    losses, gradients, less = step(model, batch)
    assert losses == expected_losses and gradients.keys() == expected.keys()
    for key, gradient in expected.items():
        assert torch.equal(gradients[key], gradient), key
    for key, value in plain.state_dict().items():  # statistics of batch normalisation among them
        assert torch.equal(model.state_dict()[key], value), key
    print(f"{name}: {kept / 1e6:.1f} MB -> {less / 1e6:.1f} MB")
    assert less < 0.9 * kept
    for one in (plain, model):
        one.eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        for key, value in plain.backbone(x).items():
            assert torch.equal(model.backbone(x)[key], value)


def test_what_cannot_be(tiny_cfg):
    timm = build_model(tiny_cfg("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"))
    with pytest.raises(ValueError, match="count each batch twice .* freeze them with MODEL.TIMM.NORM"):
        checkpoint_activations(timm.backbone)
    with pytest.raises(ValueError, match="Conv2d has no blocks of detectron2's ResNet or ViT, or of timm"):
        checkpoint_activations(nn.Conv2d(1, 1, 1))


def test_the_keys(tiny_cfg):
    cfg = tiny_cfg("MODEL.ACTIVATION_CHECKPOINT", True)
    block = Trainer.build_model(cfg).backbone.bottom_up.res3[0]
    assert "forward" in vars(block)
    cfg.MODEL.ACCELERATE_TRAINING = True
    with pytest.raises(
        UserError, match="ACTIVATION_CHECKPOINT .* switch off one of it and MODEL.ACCELERATE_TRAIN"
    ):
        Trainer.build_model(cfg)
    cfg = tiny_cfg("MODEL.ACTIVATION_CHECKPOINT", True, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")
    with pytest.raises(
        UserError, match="ACTIVATION_CHECKPOINT .*: a timm model would count each batch twice"
    ):
        Trainer.build_model(cfg)
