"""A head that predicts for every cell of a map, and is trained on a few of them: a 3x3 convolution, ReLU and a 1x1
convolution on the CPU."""

import torch
from torch import Tensor

from .pointwise import PreparedPointwise, pointwise_conv
from .winograd import PreparedConv3x3, winograd_conv3x3, winograd_weight_gradient

__all__ = ["prediction_head"]

_FEW = 8  # one cell in so many, or fewer, is computed by itself


def prediction_head(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    predictor_weight: Tensor,
    predictor_bias: Tensor,
    prepared: PreparedConv3x3,
    prepared_predictor: PreparedPointwise,
    int16: bool = False,
) -> Tensor:
    """A 3x3 convolution (stride 1, padding 1), ReLU, and a 1x1 convolution; differentiable once.

    The losses of a region proposal network are of a few hundred sampled anchors (Faster R-CNN, section 3.1.3), so that
    the gradients of its results are zero but for as many cells. Where they are, all gradients are sums over those
    cells alone, in float32; otherwise they are those of `conv3x3` and a product of matrices.

    Args:
        x: (N, C, H, W), float32, or bfloat16; C a multiple of 16.
        weight: (O, C, 3, 3), floating point; O a multiple of 16.
        bias: (O,) floating point.
        predictor_weight: (K, O, 1, 1) floating point.
        predictor_bias: (K,) floating point.
        prepared: made of ``weight`` for ``int16``.
        prepared_predictor: made of ``predictor_weight`` for the dtype of x.
        int16: multiply int16 rather than float32.

    Returns:
        (N, K, H, W), channels-last, in the dtype of x.

    Raises:
        TypeError, ValueError, NotImplementedError: as `winograd_conv3x3` and `pointwise_conv` do.
    """
    return _PredictionHead.apply(
        x, weight, bias, predictor_weight, predictor_bias, prepared, prepared_predictor, int16
    )


class _PredictionHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, predictor_weight, predictor_bias, prepared, prepared_predictor, int16):
        x = x.contiguous(memory_format=torch.channels_last)
        hidden = winograd_conv3x3(x, prepared.get(transposed=False), bias.float(), relu=True)
        ctx.save_for_backward(x, hidden, weight, predictor_weight)
        ctx.prepared, ctx.int16, ctx.bias_dtypes = prepared, int16, (bias.dtype, predictor_bias.dtype)
        return pointwise_conv(hidden, prepared_predictor.get(transposed=False), predictor_bias.float())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, hidden, weight, predictor_weight = ctx.saved_tensors
        rows = _rows(grad).float()
        cells = rows.any(1).nonzero()[:, 0]
        few = len(cells) * _FEW <= len(rows)
        # Of the cells that there are, or of all.
        rows, activations = (rows[cells], _rows(hidden)[cells]) if few else (rows, _rows(hidden))
        of_predictor = (rows.t() @ activations.float()).view_as(predictor_weight)
        of_hidden = torch.ops.aten.threshold_backward(
            rows @ predictor_weight.flatten(1).float(), activations.float(), 0
        )
        if few:
            of_x, of_weight = _gradients_of_cells(
                x, weight, cells, of_hidden, ctx.needs_input_grad[0], ctx.needs_input_grad[1]
            )
            of_bias = of_hidden.sum(0)
        else:
            n, _, height, width = x.shape
            of_hidden = of_hidden.to(x.dtype).view(n, height, width, -1).permute(0, 3, 1, 2)
            of_x = None
            if ctx.needs_input_grad[0]:
                of_x = winograd_conv3x3(of_hidden, ctx.prepared.get(transposed=True))
            of_weight, of_bias = winograd_weight_gradient(of_hidden, x, ctx.int16, bias=True)
        of_biases = [
            value.to(dtype) for value, dtype in zip((of_bias, rows.sum(0)), ctx.bias_dtypes, strict=True)
        ]
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return (
            of_x,
            of_weight,
            of_biases[0],
            of_predictor.to(predictor_weight.dtype),
            of_biases[1],
            None,
            None,
            None,
        )


def _rows(x):
    """(N, C, H, W) -> (N H W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _gradients_of_cells(x, weight, cells, grad, wants_x, wants_weight):
    """Gradients of the input and of the weight of a 3x3 convolution whose output has gradients ``grad``, (R, O) in
    float32, at ``cells``, (R,) int64 places in (N, H, W)."""
    count, channels, height, width = x.shape
    step = torch.arange(-1, 2, device=x.device)
    down, across = (torch.stack(torch.meshgrid(step, step, indexing="ij")).flatten(1)[:, None]).unbind(0)
    y, left = cells[:, None] // width % height + down, cells[:, None] % width + across  # (R, 9)
    inside = (y >= 0) & (y < height) & (left >= 0) & (left < width)
    places = (cells[:, None] + down * width + across)[inside]
    of_x = of_weight = None
    if wants_weight:
        patches = torch.zeros(*inside.shape, channels, device=x.device)
        patches[inside] = _rows(x)[places].float()
        of_weight = (grad.t() @ patches.flatten(1)).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
    if wants_x:
        taps = weight.float().permute(0, 2, 3, 1).flatten(1)  # (O, 9 C)
        parts = (grad @ taps).view(*inside.shape, channels)[inside]
        places, of_part = places.unique(return_inverse=True)
        sums = torch.zeros(len(places), channels, device=x.device).index_add_(0, of_part, parts)
        flat = torch.zeros(count * height * width, channels, dtype=x.dtype, device=x.device)
        flat[places] = sums.to(x.dtype)
        of_x = flat.view(count, height, width, channels).permute(0, 3, 1, 2)
    return of_x, of_weight
