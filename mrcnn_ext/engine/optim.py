"""Optimisers that detectron2 does not build: AdamW from yaml, clipped SGD in a LazyConfig."""

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from .errors import UserError

__all__ = ["build_optimizer", "clipped_sgd"]


def build_optimizer(cfg: CfgNode, model: nn.Module):
    """The optimiser of a yaml config.

    Args:
        cfg: ``SOLVER.OPTIMIZER``, "SGD" (detectron2's own) or "AdamW", with the rates, decays and clipping
            of ``SOLVER``.
        model: whose parameters it steps.

    Returns:
        torch.optim.Optimizer:

    Raises:
        UserError: another ``SOLVER.OPTIMIZER``.
    """
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if cfg.SOLVER.OPTIMIZER != "AdamW":
        raise UserError(f"SOLVER.OPTIMIZER must be 'SGD' or 'AdamW', got {cfg.SOLVER.OPTIMIZER!r}")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    make = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    # To a fused optimiser GradScaler leaves unscaling the gradients, which would come after they are clipped.
    fused = not (cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.AMP.ENABLED)
    return make(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=fused)


def clipped_sgd(
    params, *, clip_type: str = "norm", clip_value: float = 1.0, norm_type: float = 2.0, **kwargs
):
    """SGD that clips the gradient of every parameter before it steps, as yaml's SOLVER.CLIP_GRADIENTS does.

    Args:
        params: parameters or groups of them.
        clip_type: "norm" or "value".
        clip_value: bound on the norm or on the values.
        norm_type: p of the norm.
        **kwargs: of `torch.optim.SGD`, but for ``fused``.

    Raises:
        ValueError: ``fused``, to which mixed precision on a GPU gives gradients that are still scaled.
    """
    if kwargs.get("fused"):
        raise ValueError("fused: gradients are clipped before a fused SGD unscales those of mixed precision")
    cfg = get_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, clip_type, clip_value, norm_type
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, **kwargs)
