"""Optimisers for LazyConfigs."""

import torch
from detectron2.config import get_cfg
from detectron2.solver.build import maybe_add_gradient_clipping

__all__ = ["clipped_sgd"]


def clipped_sgd(
    params, *, clip_type: str = "norm", clip_value: float = 1.0, norm_type: float = 2.0, **kwargs
):
    """SGD that clips the gradient of every parameter before it steps, as yaml's SOLVER.CLIP_GRADIENTS does.

    Args:
        params: parameters or groups of them.
        clip_type: "norm" or "value".
        clip_value: bound on the norm or on the values.
        norm_type: p of the norm.
        **kwargs: of `torch.optim.SGD`.
    """
    cfg = get_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, clip_type, clip_value, norm_type
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, **kwargs)
