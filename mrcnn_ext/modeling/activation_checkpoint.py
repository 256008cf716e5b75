"""Activation checkpointing: a backbone whose blocks are computed again in the backward pass instead of being kept."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from detectron2.layers import CNNBlockBase
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..layers import TimmFeatures

__all__ = ["checkpoint_activations"]


def checkpoint_activations(backbone: nn.Module) -> int:
    """Keeps of each block of a backbone only its input for the backward pass, which computes the rest again (Chen et
    al., Training Deep Nets with Sublinear Memory Cost, 2016).

    Losses, gradients and statistics of batch normalisation stay the same; memory shrinks, and a step takes about a
    third longer. Evaluation is as before. Parameters keep their names.

    Args:
        backbone: detectron2's ResNet or ViT, a timm model as of `TimmFeatures`, or a pyramid on one; changed.

    Returns:
        How many blocks, or timm models, were changed.

    Raises:
        ValueError: it has no such blocks, or is a timm model whose batch normalisation has statistics in training.
    """
    nets = [module for module in backbone.modules() if isinstance(module, TimmFeatures)]
    for features in nets:
        _checked_timm(features).set_grad_checkpointing(True)
    blocks = [module for module in backbone.modules() if _is_block(module)]
    for block in blocks:
        block.forward = partial(_recomputed, block, type(block).forward)
    if not blocks and not nets:
        raise ValueError(f"{type(backbone).__name__} has no blocks of detectron2's ResNet or ViT, or of timm")
    return len(blocks) + len(nets)


def _is_block(module) -> bool:
    if isinstance(module, CNNBlockBase):
        return any(p.requires_grad for p in module.parameters())  # a frozen one keeps nothing
    from detectron2.modeling.backbone import vit

    return isinstance(module, vit.Block)


def _checked_timm(features) -> nn.Module:
    """The model, or, of a transformer, the one within timm's module that takes its features."""
    net = features.net
    if not hasattr(net, "set_grad_checkpointing"):
        net = getattr(net, "model", net)
    if not hasattr(net, "set_grad_checkpointing"):
        raise ValueError(f"timm's {type(net).__name__} has no checkpointing")
    if any(isinstance(m, _BatchNorm) and m.training for m in features.net.modules()):
        raise ValueError(
            "a timm model would count each batch twice in the statistics of its batch normalisation: freeze them with "
            'MODEL.TIMM.NORM "FrozenBN" (norm="FrozenBN")'
        )
    return net


def _recomputed(block: nn.Module, forward: Callable, x: torch.Tensor) -> torch.Tensor:
    if not (block.training and torch.is_grad_enabled()):
        return forward(block, x)
    again = partial(_without_statistics, block)
    return checkpoint(
        forward, block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again())
    )


@contextlib.contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """The batch has been counted already."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked
