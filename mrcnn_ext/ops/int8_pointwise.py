"""1x1 convolutions and linear layers in int8 on the CPU, between float32 or bf16 maps."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension

__all__ = [
    "Int8Weight",
    "add_int8_pointwise_conv_",
    "int8_pointwise_conv",
    "int8_weight",
    "quantize_weight",
]

_LANES, _CHUNK, _QUAD = 16, 64, 4  # csrc/pointwise/kernels.h and int8_kernels.h


class Int8Weight(NamedTuple):
    """The weight and bias of a 1x1 convolution or a linear layer, and how its input is quantised, in the form that
    `int8_pointwise_conv` multiplies by.

    Attributes:
        scale, zero_point: an input x counts as scale * (q - zero_point) with q = clamp(round(x / scale + zero_point),
            0, 255).
        values: (O rounded up to a multiple of 16 * C rounded up to a multiple of 4,) int8.
        weight_scale: (O,) float32: what a sum of products of q and of the values is to be multiplied by.
        bias: (O,) float32, what the zero point adds to all sums taken off.
    """

    scale: float
    zero_point: int
    values: Tensor
    weight_scale: Tensor
    bias: Tensor


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row to [-127, 127] with a scale of its own: that of the largest magnitude, or of a smaller part of
    it, whichever gives the smallest squared error.

    Args:
        weight: (O, C) floating point.

    Returns:
        (O, C) int8, and the scales (O,) float32: weight is about values * scales.
    """
    weight = weight.detach().float()
    largest = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 2**20)
    best, scales = torch.full_like(largest, torch.inf), largest / 127
    for part in (1.0, 0.95, 0.9, 0.85, 0.8):
        scale = part * largest / 127
        values = (weight / scale[:, None]).round().clamp(-127, 127)
        error = (values * scale[:, None] - weight).square().sum(1)
        scales = torch.where(error < best, scale, scales)
        best = torch.minimum(error, best)
    return (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def int8_weight(weight: Tensor, bias: Tensor | None, scale: float, zero_point: int) -> Int8Weight:
    """Quantises and reorders a weight for `int8_pointwise_conv`.

    Args:
        weight: (O, C) or (O, C, 1, 1), floating point.
        bias: (O,) floating point, or None.
        scale, zero_point: of the inputs, as of `Int8Weight`.

    Raises:
        ValueError: another shape.
    """
    if weight.dim() not in (2, 4) or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(f"int8_weight: weight must be (O, C) or (O, C, 1, 1), got {tuple(weight.shape)}")
    rows, scales = quantize_weight(weight.flatten(1))
    scales = scales * scale
    outputs, channels = rows.shape
    shift = scales * zero_point * rows.sum(1, dtype=torch.float32)
    offset = -shift if bias is None else bias.detach().float() - shift
    rows = F.pad(rows, (0, -channels % _QUAD, 0, -outputs % _LANES)).view(
        outputs + -outputs % _LANES, -1, _QUAD
    )
    values = torch.cat([chunk.transpose(0, 1).flatten() for chunk in rows.split(_CHUNK)])
    return Int8Weight(float(scale), int(zero_point), values, scales, offset)


def int8_pointwise_conv(
    x: Tensor, weight: Int8Weight, add: Tensor | None = None, stride: int = 1, relu: bool = False
) -> Tensor:
    """A 1x1 convolution in int8 on the CPU of a map in float32 or bf16, which is quantised as it is read; the sums are
    exact. Values out of the range of the quantisation count as its ends, and what is not a number as its least value.
    Not differentiable.

    Args:
        x: (N, C, H, W) float32 or bfloat16, channels-last or brought there; C at most 66304.
        weight: what `int8_weight` makes of the convolution's.
        add: in the dtype of x, added before the ReLU: either (N, O, ceil(H / stride), ceil(W / stride)), or half as
            high and wide, to be brought to that size as ``F.interpolate(add, scale_factor=2)`` does.
        stride: of the convolution.
        relu: whether a ReLU follows.

    Returns:
        (N, O, ceil(H / stride), ceil(W / stride)), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX2, or the operators are not compiled.
    """
    _extension.require("int8_pointwise_conv")
    return torch.ops.mrcnn_ext.int8_pointwise_conv(x, *weight, add, stride, relu)


def add_int8_pointwise_conv_(
    sum: Tensor, x: Tensor, weight: Int8Weight, stride: int = 1, relu: bool = False
) -> Tensor:
    """Adds `int8_pointwise_conv` to a channels-last map of its shape and dtype in place, applies the ReLU to the sum if
    asked for, and returns it. Raises as that does."""
    _extension.require("add_int8_pointwise_conv_")
    torch.ops.mrcnn_ext.add_int8_pointwise_conv_(sum, x, *weight, stride, relu)
    return sum


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::int8_pointwise_conv")
    def _fake(x, scale, zero_point, weight, weight_scale, bias, add, stride, relu):
        size = (
            x.shape[0],
            weight_scale.shape[0],
            *((side + stride - 1) // stride for side in x.shape[2:]),
        )
        return x.new_empty(size).contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("mrcnn_ext::add_int8_pointwise_conv_")
    def _fake_add(sum, x, scale, zero_point, weight, weight_scale, bias, stride, relu):
        return None
