"""3x3 convolutions on the CPU in a quarter of the multiplications: Winograd's F(4x4, 3x3)."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension

__all__ = ["WinogradWeight", "winograd_conv3x3", "winograd_is_available", "winograd_weight"]

_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)  # and infinity, as csrc/winograd/kernels_impl.h has them
_PANEL = 16
_NORM, _LARGEST = 46000, 32767  # of int16 rows, as csrc/winograd/kernels.h explains


def winograd_is_available() -> bool:
    """Whether `winograd_conv3x3` is compiled and this processor has the instructions it needs (AVX2)."""
    compiled = _extension.is_available() and _extension.backend() == "compiled"
    return compiled and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _filter_transform() -> Tensor:
    """G, (6, 3): the taps as a polynomial at each point, over what Lagrange's interpolation divides by."""
    rows = []
    for point in _POINTS:
        others = torch.tensor([point - other for other in _POINTS if other != point], dtype=torch.float64)
        rows.append(torch.tensor([1, point, point**2], dtype=torch.float64) / others.prod())
    return torch.stack([*rows, torch.tensor([0, 0, 1], dtype=torch.float64)])


class WinogradWeight(NamedTuple):
    """The weight of a 3x3 convolution in the form that `winograd_conv3x3` multiplies by.

    Attributes:
        values: (36, O / 16, C, 16) float32, or (36, O / 16, C / 2, 32) int16.
        scale: of int16, (36, O) float32; None of float32.
    """

    values: Tensor
    scale: Tensor | None


def winograd_weight(weight: Tensor, int16: bool = False) -> WinogradWeight:
    """Transforms the weight of a 3x3 convolution for `winograd_conv3x3`: G g G^T, in float64.

    Args:
        weight: (O, C, 3, 3), floating point; O and C multiples of 16.
        int16: whether the convolution multiplies int16 rather than float32.

    Raises:
        ValueError: another shape.
    """
    if (
        weight.dim() != 4
        or weight.shape[2:] != (3, 3)
        or weight.shape[0] % _PANEL
        or weight.shape[1] % _PANEL
    ):
        raise ValueError(
            f"weight must have shape (O, C, 3, 3) with O and C multiples of {_PANEL}, got {tuple(weight.shape)}"
        )
    outputs, channels = weight.shape[:2]
    matrix = _filter_transform().to(weight.device)
    taps = weight.detach().double().permute(2, 3, 0, 1).reshape(9, -1)
    points = (torch.kron(matrix, matrix) @ taps).view(36, outputs, channels)
    if not int16:
        panels = points.float().view(36, outputs // _PANEL, _PANEL, channels)
        return WinogradWeight(panels.transpose(2, 3).contiguous(), None)
    scale = torch.maximum(points.norm(dim=2) / _NORM, points.abs().amax(dim=2) / _LARGEST)
    scale = torch.where(scale > 0, scale, 1)
    steps = (points / scale[..., None]).round().to(torch.int16)
    panels = steps.view(36, outputs // _PANEL, _PANEL, channels // 2, 2).transpose(2, 3)
    return WinogradWeight(panels.reshape(36, outputs // _PANEL, channels // 2, 2 * _PANEL), scale.float())


def winograd_conv3x3(
    x: Tensor,
    weight: WinogradWeight,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """A 3x3 convolution with stride 1 and padding 1 on the CPU, by minimal filtering (Lavin and Gray, *Fast
    Algorithms for Convolutional Neural Networks*, CVPR 2016, section 4.1). Not differentiable.

    Computes in float32 whatever the dtype of the maps, and rounds once in the end: about twice as far from
    the exact sums as a direct convolution in float32.

    Args:
        x: (N, C, H, W), float32 or bfloat16, channels-last or brought there; C a multiple of 16.
        weight: what `winograd_weight` makes of the convolution's.
        bias: (O,) float32.
        add: (N, O, H, W) in the dtype of x, added before the ReLU.
        relu: whether a ReLU follows.

    Returns:
        (N, O, H, W), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: the processor has no AVX2, or x is not on the CPU.
    """
    return torch.ops.mrcnn_ext.winograd_conv3x3(x, weight.values, weight.scale, bias, add, relu)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::winograd_conv3x3")
    def _fake(x, weight, scale, bias, add, relu):
        output = x.new_empty((x.shape[0], weight.shape[1] * _PANEL, *x.shape[2:]))
        return output.contiguous(memory_format=torch.channels_last)
