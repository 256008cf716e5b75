"""Normalisation layers by the names of detectron2's get_norm, for the networks of `mrcnn_ext.layers`."""

from collections.abc import Callable
from functools import partial

from detectron2.layers import get_norm
from torch import nn

__all__ = ["norm_maker"]


def norm_maker(norm: str | Callable[[int], nn.Module]) -> Callable[[int], nn.Module] | None:
    """What makes the layer from a channel count: of a name of get_norm ("" for none, "BN", "GN", ...), or of what
    does so already."""
    return partial(get_norm, norm) if norm else None
