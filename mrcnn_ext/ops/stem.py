"""The stem of a ResNet in bf16 or float32 on the CPU: its convolution, ReLU and max pooling in one pass."""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension

__all__ = ["stem_conv_pool", "stem_weight"]

_OUTPUTS = 64  # csrc/stem/kernels.h


def stem_weight(weight: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Reorders the weight of a stem's convolution for `stem_conv_pool`.

    Args:
        weight: (O, 3, 7, 7), floating point; O a multiple of 64.
        dtype: bfloat16 or float32.

    Returns:
        (O / 64, 7, 11, 64, 2) bfloat16: for each row of the kernel its 21 values and a zero, in pairs; or
        (O / 64, 7, 3, 7, 64) float32: each row of the kernel channel by channel.

    Raises:
        ValueError: another shape or dtype.
    """
    if weight.dim() != 4 or weight.shape[1:] != (3, 7, 7) or len(weight) % _OUTPUTS or not len(weight):
        raise ValueError(
            f"stem_weight: weight must be (O, 3, 7, 7) with O a multiple of 64, got {tuple(weight.shape)}"
        )
    if dtype == torch.float32:
        return weight.detach().float().view(-1, _OUTPUTS, 3, 7, 7).permute(0, 3, 2, 4, 1).contiguous()
    if dtype != torch.bfloat16:
        raise ValueError(f"stem_weight: dtype must be torch.bfloat16 or torch.float32, got {dtype}")
    rows = F.pad(weight.detach().bfloat16().permute(0, 2, 3, 1).flatten(2), (0, 1))
    return rows.view(-1, _OUTPUTS, 7, 11, 2).permute(0, 2, 3, 1, 4).contiguous()


def stem_conv_pool(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The stem of He et al., *Deep Residual Learning for Image Recognition* (CVPR 2016, table 1): a convolution of
    7x7 with stride 2 and padding 3, ReLU, and max pooling of 3x3 with stride 2 and padding 1. In bfloat16 the image
    and the weight are rounded to it, the sums are float32 and rounded once, and a value that is not finite reaches one
    cell of the convolution further to the right. A NaN stays one. Not differentiable.

    Args:
        x: (N, 3, H, W) floating point.
        weight: what `stem_weight` makes of the convolution's (O, 3, 7, 7).
        bias: (O,) float32.

    Returns:
        (N, O, ceil(H / 4), ceil(W / 4)) in the dtype of the weight, channels-last.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: x is not on the CPU, the processor has no AVX512-BF16 (float32: no AVX2), or the
            operators are not compiled.
    """
    _extension.require("stem_conv_pool")
    return torch.ops.mrcnn_ext.stem_conv_pool(x, weight, bias)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::stem_conv_pool")
    def _fake(x, weight, bias):
        height, width = ((side + 3) // 4 for side in x.shape[2:])
        output = x.new_empty((x.shape[0], weight.shape[0] * _OUTPUTS, height, width), dtype=weight.dtype)
        return output.contiguous(memory_format=torch.channels_last)
