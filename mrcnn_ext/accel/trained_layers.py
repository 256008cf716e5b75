"""Convolutions that train faster: what they compute is the original's, forward and backward."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.winograd import conv3x3
from .conv_classes import activation_after, is_known_conv
from .fused_module import FusedModule, replace_child
from .kernel_support import doubling_as_linear, is_doubling, supports_winograd

__all__ = ["MatrixConvTranspose2d", "WinogradConv2d", "train_as_matrix_products", "train_with_winograd"]


def train_with_winograd(model: nn.Module, arithmetic: str) -> int:
    """Lets the 3x3 convolutions of a model train as `WinogradConv2d`; returns how many.

    Args:
        arithmetic: as of `WinogradConv2d`.
    """
    return _replace(
        model,
        lambda module: is_known_conv(module) and supports_winograd(module),
        lambda module: WinogradConv2d(module, arithmetic),
    )


def train_as_matrix_products(model: nn.Module) -> int:
    """Lets the transposed convolutions of a model that double their maps train as `MatrixConvTranspose2d`; returns how
    many."""
    return _replace(model, is_doubling, MatrixConvTranspose2d)


def _replace(model, serves, make):
    replaced = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FusedModule) and serves(child):
                replaced.setdefault(child, make(child))
                replace_child(parent, name, replaced[child])
    return len(replaced)


class WinogradConv2d(FusedModule, nn.Conv2d):
    """A convolution with its normalisation and activation; the convolution is `mrcnn_ext.ops.winograd.conv3x3`, in
    training and in evaluation mode.

    Args:
        original: for which `supports_winograd` holds.
        arithmetic: "int16" or "float32"; "auto" int16 under bf16 autocast, float32 without; "float32 alone" the
            same, but under autocast PyTorch's convolutions.
    """

    def __init__(self, original: nn.Conv2d, arithmetic: str):
        super().__init__(original)
        self.arithmetic = arithmetic
        self.activation_after = activation_after(original)

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        norm = self._modules.get("norm")
        if norm is not None:
            x = norm(x)
        return x if self.activation_after is None else self.activation_after(x)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        if autocast and x.is_floating_point():
            x = x.to(torch.get_autocast_dtype("cpu"))
        served = x.device.type == "cpu" and x.dim() == 4 and x.dtype in (torch.float32, torch.bfloat16)
        if not served or (autocast and self.arithmetic == "float32 alone"):
            return self.original._conv_forward(x, weight, bias)
        int16 = self.arithmetic == "int16" or (self.arithmetic == "auto" and autocast)
        with torch.autocast("cpu", enabled=False):
            return conv3x3(x, weight, bias, int16)

    def extra_repr(self) -> str:
        return f"{self.original.extra_repr()}; winograd_conv3x3, {self.arithmetic}"


class MatrixConvTranspose2d(FusedModule, nn.ConvTranspose2d):
    """A transposed convolution that doubles its maps, as a linear layer, whose backward is several times faster; in
    training and in evaluation mode.

    Args:
        original: for which `is_doubling` holds.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return self.original.forward(x, output_size)
        weight, bias = doubling_as_linear(self.weight, self.bias)
        count, _, height, width = x.shape
        x = F.linear(x.permute(0, 2, 3, 1), weight, bias).view(count, height, width, 2, 2, self.out_channels)
        x = x.transpose(2, 3).reshape(count, 2 * height, 2 * width, self.out_channels)
        return x.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.original.extra_repr()}; as a linear layer"
