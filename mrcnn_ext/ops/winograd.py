"""3x3 convolutions on the CPU in a quarter of the multiplications: Winograd's F(4x4, 3x3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension
from ._gradients import PreparedWeight, gradient_before_relu

__all__ = [
    "PreparedConv3x3",
    "WinogradWeight",
    "conv3x3",
    "winograd_conv3x3",
    "winograd_int8_is_available",
    "winograd_int8_weight",
    "winograd_is_available",
    "winograd_weight",
    "winograd_weight_gradient",
]


def winograd_is_available() -> bool:
    """Whether these convolutions are compiled and this processor has the instructions they need (AVX2)."""
    compiled = _extension.is_available() and _extension.backend() == "compiled"
    return compiled and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def winograd_int8_is_available() -> bool:
    """The same of `winograd_int8_weight` (AVX512-VNNI)."""
    widest = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return winograd_is_available() and widest and bool(torch.cpu.get_capabilities().get("avx512_vnni"))


class WinogradWeight(NamedTuple):
    """The weight of a 3x3 convolution in the form that `winograd_conv3x3` multiplies by.

    Attributes:
        values: (36, O / 16, C, 16) float32, (36, O / 16, C / 2, 32) int16 or (36, O / 16, C / 4, 64) int8.
        scale: of int16, (36, O) float32; of int8 (72, O), the sums of the values after their scales; empty of float32.
    """

    values: Tensor
    scale: Tensor


def winograd_weight(weight: Tensor, int16: bool = False, transposed: bool = False) -> WinogradWeight:
    """Transforms the weight of a 3x3 convolution for `winograd_conv3x3`.

    Args:
        weight: (O, C, 3, 3), floating point; O and C multiples of 16.
        int16: whether the convolution multiplies int16 rather than float32.
        transposed: make the weight of the convolution that takes gradients of the output to gradients of the
            input.

    Raises:
        ValueError: another shape.
        NotImplementedError: weight is not on the CPU, the processor has no AVX2, or the operators are not compiled.
    """
    _extension.require("winograd_weight")
    return WinogradWeight(*torch.ops.mrcnn_ext.winograd_weight(weight.detach(), int16, transposed))


def winograd_int8_weight(weight: Tensor) -> WinogradWeight:
    """The same for a convolution that multiplies values of 8 bits.

    Args:
        weight: (O, C, 3, 3), floating point; O and C multiples of 16.

    Raises:
        ValueError: another shape.
        NotImplementedError: weight is not on the CPU, or the operators are not compiled.
    """
    _extension.require("winograd_int8_weight")
    return WinogradWeight(*torch.ops.mrcnn_ext.winograd_int8_weight(weight.detach()))


def winograd_conv3x3(
    x: Tensor,
    weight: WinogradWeight,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A 3x3 convolution with stride 1 and padding 1 on the CPU, by minimal filtering (Lavin and Gray, *Fast
    Algorithms for Convolutional Neural Networks*, CVPR 2016, section 4.1). Not differentiable; see `conv3x3`.

    With a float32 weight about twice as far from the exact sums as a direct convolution in float32. With an int16
    weight twice as fast, and several times closer to them than a convolution in bf16. With an int8 weight up to twice
    as fast again, and off by some 3 % of their standard deviation, two to three times as much as a direct convolution
    in int8; each tile and point has a range of its own, so that none has to be found beforehand. Results are rounded to
    the dtype of the maps once, in the end. The outputs of a 4x4 tile share their inputs, so that rounding, and a value
    that is not finite, reach up to four cells further than in a direct convolution, the next image of a batch of
    small maps included.

    Args:
        x: (N, C, H, W), float32 or bfloat16, channels-last or brought there; C a multiple of 16.
        weight: what `winograd_weight` or `winograd_int8_weight` makes of the convolution's.
        bias: (O,) float32.
        add: (N, O, H, W) in the dtype of x, added before the ReLU.
        relu: whether a ReLU follows.

    Returns:
        (N, O, H, W), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX2, or no AVX512-VNNI for an int8 weight, or
            the operators are not compiled.
    """
    _extension.require("winograd_conv3x3")
    return torch.ops.mrcnn_ext.winograd_conv3x3(x, *weight, bias, add, relu)


def winograd_weight_gradient(
    grad: Tensor, x: Tensor, int16: bool = False, bias: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the weight of a 3x3 convolution with stride 1 and padding 1 on the CPU, by the transpose of the
    algorithm of `winograd_conv3x3`, in a quarter of the multiplications too.

    Sums are float32, over all images. With int16 the error is below a thousandth of what a sum of so many independent
    products is, several times less than that of rounding the gradient to bf16.

    Args:
        grad: (N, O, H, W), the gradient of the output, in the dtype of x; O a multiple of 16.
        x: (N, C, H, W), the input, float32 or bfloat16; C a multiple of 16.
        int16: multiply int16 rather than float32.
        bias: whether the gradient of the bias is wanted as well.

    Returns:
        (O, C, 3, 3) float32, channels-last; and (O,) float32, or None.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX2, or the operators are not compiled.
    """
    _extension.require("winograd_weight_gradient")
    of_weight, of_bias = torch.ops.mrcnn_ext.winograd_weight_gradient(grad, x, int16, bias)
    return of_weight, of_bias if bias else None


class PreparedConv3x3(PreparedWeight[WinogradWeight]):
    """What `conv3x3` makes of a weight, forward and backward, made when it is first wanted.

    Args:
        weight: (O, C, 3, 3), floating point, which must stay as it is.
        int16: multiply int16 rather than float32.
    """

    def __init__(self, weight: Tensor, int16: bool):
        super().__init__()
        self._weight, self._int16 = weight.detach(), int16

    def _make(self, transposed: bool) -> WinogradWeight:
        return winograd_weight(self._weight, self._int16, transposed)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    int16: bool = False,
    add: Tensor | None = None,
    relu: bool = False,
    prepared: PreparedConv3x3 | None = None,
) -> Tensor:
    """`winograd_conv3x3` of a plain weight, differentiable once: the gradient of the input is another such
    convolution, that of the weight `winograd_weight_gradient`.

    Args:
        x: (N, C, H, W), float32 or bfloat16.
        weight: (O, C, 3, 3), floating point; O and C multiples of 16.
        bias: (O,) floating point.
        int16: multiply int16 rather than float32.
        add: (N, O, H, W) in the dtype of x, added before the ReLU.
        relu: whether a ReLU follows.
        prepared: made of the weight before, for the same ``int16``.

    Returns:
        (N, O, H, W), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError, NotImplementedError: as `winograd_conv3x3` and `winograd_weight` do.
    """
    return _Conv3x3.apply(x, weight, bias, int16, add, relu, prepared)


def _transformed(prepared, weight, int16, transposed):
    return winograd_weight(weight, int16, transposed) if prepared is None else prepared.get(transposed)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, int16, add, relu, prepared):
        ctx.int16, ctx.bias_dtype = int16, None if bias is None else bias.dtype
        ctx.prepared = prepared
        bias = None if bias is None else bias.float()
        output = winograd_conv3x3(x, _transformed(prepared, weight, int16, False), bias, add, relu)
        ctx.save_for_backward(x, weight, output if relu else None)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, output = ctx.saved_tensors
        grad = gradient_before_relu(grad, output)
        of_x = of_weight = of_bias = None
        wants_x, wants_weight, wants_bias, _, wants_add = ctx.needs_input_grad[:5]
        if wants_x:
            of_x = winograd_conv3x3(grad, _transformed(ctx.prepared, weight, ctx.int16, True))
        if wants_weight:
            of_weight, of_bias = winograd_weight_gradient(grad, x, ctx.int16, wants_bias)
            of_weight = of_weight.to(weight.dtype)
        elif wants_bias:
            of_bias = grad.sum((0, 2, 3), dtype=torch.float32)
        if of_bias is not None:
            of_bias = of_bias.to(ctx.bias_dtype)
        return of_x, of_weight, of_bias, None, grad if wants_add else None, None, None


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::winograd_conv3x3")
    def _fake(x, weight, scale, bias, add, relu):
        output = x.new_empty((x.shape[0], weight.shape[1] * 16, *x.shape[2:]))
        return output.contiguous(memory_format=torch.channels_last)

    @torch.library.register_fake("mrcnn_ext::winograd_weight_gradient")
    def _fake_weight_gradient(grad, x, int16, bias):
        outputs, channels = grad.shape[1], x.shape[1]
        of_weight = grad.new_empty((outputs, channels, 3, 3), dtype=torch.float32)
        of_bias = grad.new_empty((outputs if bias else 0,), dtype=torch.float32)
        return of_weight.contiguous(memory_format=torch.channels_last), of_bias

    @torch.library.register_fake("mrcnn_ext::winograd_weight")
    def _fake_weight(weight, int16, transposed):
        outputs, channels = (weight.shape[1], weight.shape[0]) if transposed else weight.shape[:2]
        size = (channels // 2, 32) if int16 else (channels, 16)
        values = weight.new_empty((36, outputs // 16, *size), dtype=torch.int16 if int16 else torch.float32)
        return values, weight.new_empty((36 if int16 else 0, outputs), dtype=torch.float32)

    @torch.library.register_fake("mrcnn_ext::winograd_int8_weight")
    def _fake_int8_weight(weight):
        outputs, channels = weight.shape[:2]
        values = weight.new_empty((36, outputs // 16, channels // 4, 64), dtype=torch.int8)
        return values, weight.new_empty((72, outputs), dtype=torch.float32)
