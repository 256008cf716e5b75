"""Classes of convolutions whose forward is known: a convolution, then a child ``norm`` if there is one, then an
activation."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ..layers.conv import ConvNormReLU
from .fused_module import defines

__all__ = ["activation_after", "is_known_conv", "is_relu", "register_conv"]

_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)


def _nothing(conv):
    return None


def _relu(conv):
    return F.relu_


_CLASSES: dict[type, Callable[[nn.Conv2d], Callable | None]] = {nn.Conv2d: _nothing, ConvNormReLU: _relu}


def register_conv(cls: type, activation: Callable[[nn.Conv2d], Callable | None] = _nothing) -> None:
    """Makes a subclass of ``nn.Conv2d`` known whose forward is its convolution, its ``norm`` if it has such a child,
    and an activation.

    Args:
        cls: subclasses with a forward of their own are not covered.
        activation: gives what an instance applies last, a callable on tensors; None for nothing.
    """
    _CLASSES[cls] = activation


def _known_class(conv):
    if not isinstance(conv, nn.Conv2d) or not defines(conv, nn.Conv2d, "_conv_forward"):
        return None
    return next(
        (cls for cls in type(conv).__mro__ if cls in _CLASSES and defines(conv, cls, "forward")), None
    )


def is_known_conv(conv: nn.Module) -> bool:
    """Whether a module is a convolution whose forward is known, padded with zeros."""
    return _known_class(conv) is not None and conv.padding_mode == "zeros"


def activation_after(conv: nn.Conv2d) -> Callable | None:
    """What a known convolution applies last."""
    return _CLASSES[_known_class(conv)](conv)


def is_relu(activation) -> bool:
    """Whether an activation, a module or a function, is a ReLU."""
    return type(activation) is nn.ReLU or activation in _RELUS
