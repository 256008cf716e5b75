"""Convolutions that train faster: what they compute is stock's, forward and backward."""

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.conv import ConvNormReLU
from ..ops.winograd import conv3x3
from .class_swap import defines, swap
from .kernel_support import doubling_as_linear, is_doubling, winograd_serves

__all__ = ["train_as_matrix_products", "train_with_winograd"]


def train_with_winograd(model: nn.Module, arithmetic: str) -> int:
    """Lets the 3x3 convolutions of a model train by `mrcnn_ext.ops.winograd.conv3x3`; returns how many.

    Args:
        arithmetic: "int16" or "float32"; "auto" int16 under bf16 autocast, float32 without; "float32 alone" the
            same, but under autocast PyTorch's convolutions.
    """
    count = 0
    for module in model.modules():
        for owner, mixin in _MIXINS:
            stock = defines(module, owner, "forward") and defines(module, nn.Conv2d, "_conv_forward")
            if stock and winograd_serves(module):
                swap(module, mixin, winograd=arithmetic)
                count += 1
                break
    return count


def train_as_matrix_products(model: nn.Module) -> int:
    """Lets the transposed convolutions of a model that double their maps train as linear layers, whose backward
    is several times faster; returns how many."""
    layers = [module for module in model.modules() if is_doubling(module)]
    for layer in layers:
        swap(layer, _TrainedDoubling)
    return len(layers)


class _TrainedConv:
    """Mixin for a Conv2d whose forward calls ``_conv_forward``. Attribute: ``winograd``, the arithmetic."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        arithmetic = self._swapped["winograd"]
        autocast = torch.is_autocast_enabled("cpu")
        if autocast and x.is_floating_point():
            x = x.to(torch.get_autocast_dtype("cpu"))
        served = x.device.type == "cpu" and x.dim() == 4 and x.dtype in (torch.float32, torch.bfloat16)
        if not served or (autocast and arithmetic == "float32 alone"):
            return super()._conv_forward(x, weight, bias)
        int16 = arithmetic == "int16" or (arithmetic == "auto" and autocast)
        with torch.autocast("cpu", enabled=False):
            return conv3x3(x, weight, bias, int16)


class _TrainedDetectron2Conv(_TrainedConv):
    """The same for detectron2's Conv2d, which has a normalisation and an activation of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class _TrainedDoubling:
    """Mixin for a ConvTranspose2d that doubles its maps."""

    def forward(self, x: Tensor, output_size=None) -> Tensor:
        if output_size is not None:
            return super().forward(x, output_size)
        weight, bias = doubling_as_linear(self.weight, self.bias)
        count, _, height, width = x.shape
        x = F.linear(x.permute(0, 2, 3, 1), weight, bias).view(count, height, width, 2, 2, self.out_channels)
        x = x.transpose(2, 3).reshape(count, 2 * height, 2 * width, self.out_channels)
        return x.permute(0, 3, 1, 2)


# class whose forward it is -> what goes before it
_MIXINS = ((Conv2d, _TrainedDetectron2Conv), (ConvNormReLU, _TrainedConv), (nn.Conv2d, _TrainedConv))
