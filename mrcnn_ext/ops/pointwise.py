"""1x1 convolutions and linear layers in bf16 on the CPU, with what follows them done as the results are written."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension

__all__ = [
    "PointwiseWeight",
    "add_pointwise_conv_",
    "pointwise_conv",
    "pointwise_weight",
]

_LANES, _CHUNK = 16, 64  # csrc/pointwise/kernels.h


class PointwiseWeight(NamedTuple):
    """The weight of a 1x1 convolution or a linear layer in the form that `pointwise_conv` multiplies by.

    Attributes:
        values: (O rounded up to a multiple of 16 * C,) bfloat16.
        outputs: O.
    """

    values: Tensor
    outputs: int


def pointwise_weight(weight: Tensor) -> PointwiseWeight:
    """Reorders a weight for `pointwise_conv`.

    Args:
        weight: (O, C) or (O, C, 1, 1), floating point; C even.

    Raises:
        ValueError: another shape.
    """
    if weight.dim() not in (2, 4) or weight.shape[1] % 2 or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"pointwise_weight: weight must be (O, C) or (O, C, 1, 1) with an even C, got {tuple(weight.shape)}"
        )
    outputs, channels = weight.shape[:2]
    rows = weight.detach().reshape(outputs, channels).bfloat16()
    rows = F.pad(rows, (0, 0, 0, -outputs % _LANES)).view(-1, channels // 2, 2)
    return PointwiseWeight(
        torch.cat([chunk.transpose(0, 1).flatten() for chunk in rows.split(_CHUNK)]), outputs
    )


def pointwise_conv(
    x: Tensor,
    weight: PointwiseWeight,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    stride: int = 1,
    relu: bool = False,
    float32: bool = False,
) -> Tensor:
    """A 1x1 convolution in bf16 on the CPU, summed in float32 and rounded once. Not differentiable.

    Args:
        x: (N, C, H, W) bfloat16, channels-last or brought there; C even.
        weight: what `pointwise_weight` makes of the convolution's.
        bias: (O,) float32.
        add: in the dtype of the result, added before the ReLU: either (N, O, ceil(H / stride), ceil(W / stride)),
            or half as high and wide, to be brought to that size as ``F.interpolate(add, scale_factor=2)`` does.
        stride: of the convolution.
        relu: whether a ReLU follows.
        float32: give the sums as they are, rather than rounded to bfloat16.

    Returns:
        (N, O, ceil(H / stride), ceil(W / stride)), channels-last, bfloat16 or float32.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX512-BF16, or the operators are not
            compiled.
    """
    _extension.require("pointwise_conv")
    return torch.ops.mrcnn_ext.pointwise_conv(x, *weight, bias, add, stride, relu, float32)


def add_pointwise_conv_(
    sum: Tensor,
    x: Tensor,
    weight: PointwiseWeight,
    bias: Tensor | None = None,
    stride: int = 1,
    relu: bool = False,
) -> Tensor:
    """Adds `pointwise_conv` to a channels-last map of its shape, (N, O, ceil(H / stride), ceil(W / stride))
    bfloat16, in place, applies the ReLU to the sum if asked for, and returns it. Raises as that does."""
    _extension.require("add_pointwise_conv_")
    torch.ops.mrcnn_ext.add_pointwise_conv_(sum, x, weight.values, bias, stride, relu)
    return sum


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::pointwise_conv")
    def _fake(x, weight, outputs, bias, add, stride, relu, float32):
        size = (x.shape[0], outputs, *((side + stride - 1) // stride for side in x.shape[2:]))
        output = x.new_empty(size, dtype=torch.float32 if float32 else torch.bfloat16)
        return output.contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("mrcnn_ext::add_pointwise_conv_")
    def _fake_add(sum, x, weight, bias, stride, relu):
        return None
