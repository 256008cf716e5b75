"""1x1 convolutions and linear layers in float32 and bf16 on the CPU, with what follows done as results are written."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension
from ._gradients import PreparedWeight, gradient_before_relu

__all__ = [
    "PointwiseWeight",
    "PreparedPointwise",
    "add_pointwise_conv_",
    "conv1x1",
    "pointwise_conv",
    "pointwise_weight",
]

_LANES, _CHUNK = 16, 64  # csrc/pointwise/kernels.h


class PointwiseWeight(NamedTuple):
    """The weight of a 1x1 convolution or a linear layer in the form that `pointwise_conv` multiplies by.

    Attributes:
        values: (O rounded up to a multiple of 16 * C,) bfloat16 or float32.
        outputs: O.
    """

    values: Tensor
    outputs: int


def pointwise_weight(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> PointwiseWeight:
    """Reorders a weight for `pointwise_conv`.

    Args:
        weight: (O, C) or (O, C, 1, 1), floating point; C even for bfloat16.
        dtype: of what it is to be multiplied with, bfloat16 or float32.

    Raises:
        ValueError: another shape or dtype.
    """
    if dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"pointwise_weight: dtype must be torch.bfloat16 or torch.float32, got {dtype}")
    in_pairs = dtype == torch.bfloat16
    odd = in_pairs and weight.dim() > 1 and weight.shape[1] % 2
    if weight.dim() not in (2, 4) or odd or weight.shape[2:] not in ((), (1, 1)):
        raise ValueError(
            f"pointwise_weight: weight must be (O, C) or (O, C, 1, 1){' with an even C' if in_pairs else ''}, "
            f"got {tuple(weight.shape)}"
        )
    outputs, channels = weight.shape[:2]
    rows = F.pad(weight.detach().reshape(outputs, channels).to(dtype), (0, 0, 0, -outputs % _LANES))
    if not in_pairs:
        return PointwiseWeight(rows.view(-1, _LANES, channels).transpose(1, 2).flatten(), outputs)
    rows = rows.view(-1, channels // 2, 2)
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
    """A 1x1 convolution in float32 or bf16 on the CPU, summed in float32 and rounded once. Not differentiable.

    Args:
        x: (N, C, H, W) float32, or bfloat16 and C even; channels-last or brought there.
        weight: what `pointwise_weight` makes of the convolution's for the dtype of x.
        bias: (O,) float32.
        add: in the dtype of the result, added before the ReLU: either (N, O, ceil(H / stride), ceil(W / stride)),
            or half as high and wide, to be brought to that size as ``F.interpolate(add, scale_factor=2)`` does.
        stride: of the convolution.
        relu: whether a ReLU follows.
        float32: give the sums as they are, rather than rounded to the dtype of x.

    Returns:
        (N, O, ceil(H / stride), ceil(W / stride)), channels-last, in the dtype of x or float32.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX512-BF16 (for bfloat16) or AVX2 (for
            float32), or the operators are not compiled.
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
    in the dtype of x, in place, applies the ReLU to the sum if asked for, and returns it. Raises as that does."""
    _extension.require("add_pointwise_conv_")
    torch.ops.mrcnn_ext.add_pointwise_conv_(sum, x, weight.values, bias, stride, relu)
    return sum


class PreparedPointwise(PreparedWeight[PointwiseWeight]):
    """What `conv1x1` makes of a weight, forward and backward, made when it is first wanted.

    Args:
        weight: (O, C, 1, 1), floating point, which must stay as it is.
        dtype: of what it is to be multiplied with.
    """

    def __init__(self, weight: Tensor, dtype: torch.dtype):
        super().__init__()
        self._weight, self._dtype = weight.detach(), dtype

    def _make(self, transposed: bool) -> PointwiseWeight:
        return _reordered(None, self._weight, self._dtype, transposed)


def conv1x1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    stride: int = 1,
    relu: bool = False,
    prepared: PreparedPointwise | None = None,
) -> Tensor:
    """`pointwise_conv` of a plain weight, differentiable once. With stride 1 the gradient of the input is another such
    convolution, all other gradients are PyTorch's, in the dtype of x.

    Args:
        x: (N, C, H, W), float32, or bfloat16 and C and O even.
        weight: (O, C, 1, 1), floating point.
        bias: (O,) floating point.
        add: (N, O, ceil(H / stride), ceil(W / stride)) in the dtype of x, added before the ReLU.
        stride: of the convolution.
        relu: whether a ReLU follows.
        prepared: made of the weight before.

    Returns:
        (N, O, ceil(H / stride), ceil(W / stride)), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError, NotImplementedError: as `pointwise_conv` and `pointwise_weight` do.
    """
    return _Conv1x1.apply(x, weight, bias, add, stride, relu, prepared)


def _reordered(prepared, weight, dtype, transposed):
    if prepared is not None:
        return prepared.get(transposed)
    return pointwise_weight(weight.transpose(0, 1) if transposed else weight, dtype)


class _Conv1x1(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, add, stride, relu, prepared):
        ctx.stride, ctx.bias_dtype = stride, None if bias is None else bias.dtype
        ctx.prepared = prepared
        bias = None if bias is None else bias.float()
        output = pointwise_conv(x, _reordered(prepared, weight, x.dtype, False), bias, add, stride, relu)
        ctx.save_for_backward(x, weight, output if relu else None)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, output = ctx.saved_tensors
        grad = gradient_before_relu(grad, output)
        of_x = of_weight = of_bias = None
        wants_x, wants_weight, wants_bias, wants_add = ctx.needs_input_grad[:4]
        if wants_x and ctx.stride == 1:
            of_x = pointwise_conv(grad, _reordered(ctx.prepared, weight, x.dtype, True))
        others = [wants_x and of_x is None, wants_weight]
        if any(others):
            geometry = ([ctx.stride] * 2, [0, 0], [1, 1], False, [0, 0], 1)
            strided, of_weight, _ = torch.ops.aten.convolution_backward(
                grad, x, weight.to(x.dtype), None, *geometry, [*others, False]
            )
            of_x = strided if of_x is None else of_x
            of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        if wants_bias:
            of_bias = grad.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_dtype)
        return of_x, of_weight, of_bias, grad if wants_add else None, None, None, None


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::pointwise_conv")
    def _fake(x, weight, outputs, bias, add, stride, relu, float32):
        size = (x.shape[0], outputs, *((side + stride - 1) // stride for side in x.shape[2:]))
        output = x.new_empty(size, dtype=torch.float32 if float32 else x.dtype)
        return output.contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("mrcnn_ext::add_pointwise_conv_")
    def _fake_add(sum, x, weight, bias, stride, relu):
        return None
