"""Optimisers: gradients are clipped as they are, whatever mixed precision scales them by."""

import copy

import pytest

pytest.importorskip("detectron2")

import torch

from mrcnn_ext.engine.optim import build_optimizer, clipped_sgd
from mrcnn_ext.engine.setup import load_config

pytestmark = pytest.mark.detectron2


def config(clip, amp):
    cfg = load_config("")
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.AMP.ENABLED = "AdamW", 1e-3, amp
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED, cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip, "norm"
    return cfg


def steps(optimizer, model, scaler=None):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("clip", [True, False])
def test_scaled_gradients_step_as_plain_ones(clip):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    other = copy.deepcopy(model)
    plain = steps(build_optimizer(config(clip, amp=False), model), model)
    scaled = steps(build_optimizer(config(clip, amp=True), other), other, torch.amp.GradScaler("cpu"))
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6)


def test_clipped_sgd_is_not_fused():
    parameters = list(torch.nn.Linear(2, 2).parameters())
    assert clipped_sgd(parameters, lr=0.1).defaults["lr"] == 0.1
    with pytest.raises(ValueError, match="fused: gradients are clipped before"):
        clipped_sgd(parameters, lr=0.1, fused=True)
