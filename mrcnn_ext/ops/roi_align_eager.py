"""RoI pooling in plain PyTorch: the path taken where the compiled operator is absent or forced off.

A regular grid of bilinear samples is the product of two 1-D grids, so that with a small matrix per axis the
samples of one RoI and channel are ``B_y F B_xᵀ``. The average variants fold the mean over each bin into the
matrices (``out = A_y F A_xᵀ``, backward ``A_yᵀ G A_x``); the max variants take the maximum of each bin's
samples. RoIs are visited one by one, in order, on one window of the feature map each: slow, but deterministic
on every device and bounded in memory.

Shapes: P bins and S samples per bin along an axis, windows of (C, h, w) cells. Positions are computed on the
CPU, in the dtype of the RoIs and in torchvision's order of operations, because rounding another way changes
the adaptive number of samples. Sums over cells run in float32 or wider.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from .roi_options import RoIOptions

AVERAGE_MODES = ("avg", "warp_avg", "exact")
MAX_MODES = ("max", "warp_max", "pool")

# Elements of the largest temporary of a max mode: 64 MiB in float32.
_BLOCK = 2**24


class _Axis(NamedTuple):
    """Weights of one RoI along one axis. Rows are bins (average modes) or samples (max modes): those S of a bin's that
    lie on the map in any bin, of the B bins that have some there."""

    first: int  # the window's first cell
    weights: Tensor  # (P or B * S, cells of the window), float64
    # For the max modes alone:
    inside: Tensor = torch.empty(0)  # (B * S,) bool: False where the sample is worth 0
    bins: Tensor = torch.empty(0)  # (B,) of P
    outside: Tensor = torch.empty(0)  # (B,) bool: whether a bin has samples that are worth 0


def assign_levels(
    rois: Tensor, spatial_scales: list[float], canonical_box_size: float, canonical_level: int
) -> Tensor:
    """FPN eq. 1, as an index into the pyramid: (R,) int64; -1 where the area is negative or not a number.

    The arithmetic is detectron2's, so that a box at the edge between two levels lands where it does there.
    """
    if len(spatial_scales) == 1:
        return torch.zeros(rois.shape[0], dtype=torch.int64, device=rois.device)
    finest = round(-math.log2(spatial_scales[0]))
    rois = rois.float()  # whatever the features are: the boundaries between levels depend on rounding
    sizes = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_box_size + 1e-8)) - finest
    return levels.clamp(0, len(spatial_scales) - 1).nan_to_num(-1.0).long()


def check_batch_indices(features: list[Tensor], rois: Tensor) -> None:
    """Raises ValueError where a RoI's batch index is not one of the features' batch."""
    index, batch = rois[:, 0], features[0].shape[0]
    wrong = ~((index >= 0) & (index < batch))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"boxes: row {row} has batch index {index[row].item():g}, which must lie in [0, {batch})"
        )


def empty_like_layout(x: Tensor, shape, dtype: torch.dtype) -> Tensor:
    """What an output made from `x` is written to: channels-last if the strides of `x` are, a part of a larger map
    too, as the compiled operators decide."""
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=suggest_memory_format(x))


def _round_half_away(x: Tensor) -> Tensor:
    # Not by adding 0.5, which rounds: 0.49999997 + 0.5 is 1, and odd numbers above 2^23 become even.
    whole = x.trunc()
    return whole + torch.where((x - whole).abs() >= 0.5, x.sign(), 0.0)


def roi_extent(low: Tensor, high: Tensor, aligned: bool, mode: str) -> tuple[Tensor, Tensor]:
    """Start and extent of a RoI along one axis, in feature cells, from its scaled corners."""
    offset = 0.5 if aligned and mode != "pool" else 0.0
    if mode in ("pool", "warp_avg", "warp_max"):
        start = _round_half_away(low)
        return start - offset, (_round_half_away(high) - start + 1).clamp(min=1)
    start = low - offset
    extent = (high - offset) - start
    return start, extent if aligned or mode == "exact" else extent.clamp(min=1)


def _interpolation(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Bilinear weights (positions, size) of positions in feature cells, and which are in reach of the map."""
    inside = (position >= -1) & (position <= size)
    clamped = position.clamp(0, size - 1).double()
    low = clamped.floor()
    high = (low + 1).clamp(max=size - 1)
    weights = torch.zeros(len(position), size, dtype=torch.float64)
    weights.scatter_add_(1, low.long()[:, None], (1 - (clamped - low))[:, None])
    weights.scatter_add_(1, high.long()[:, None], (clamped - low)[:, None])
    return weights.mul_(inside[:, None]), inside


def _sampled(start: Tensor, extent: Tensor, bins: int, size: int, sampling_ratio: int, average: bool):
    """Weights of an axis sampled at regular points: the mean of each bin, or every sample by itself."""
    samples = float(sampling_ratio) if sampling_ratio > 0 else float(torch.ceil(extent / bins))
    if not 0 < samples <= 2**31:
        return None
    bin_size = extent / bins
    origin = start + torch.arange(bins, dtype=start.dtype) * bin_size
    # A bin far larger than the map visits only the samples that can touch it, give or take their rounding.
    step, slack = float(bin_size) / samples, 4 + samples / 2**20
    visited = samples if step == 0 else min(samples, (size + 1) / abs(step) + 2 * slack)
    first = torch.zeros(bins, dtype=torch.float64)
    if visited < samples:
        near = -1.0 if step > 0 else float(size)
        first = ((near - origin.double()) / step - slack).floor().clamp(0, math.floor(samples - visited))
    number = (first[:, None] + torch.arange(math.ceil(visited))).to(start.dtype)
    position = origin[:, None] + (number + 0.5) * bin_size / samples
    weights, inside = _interpolation(position.flatten(), size)
    if average:
        return weights.view(bins, -1, size).sum(1).div_(samples), None
    return weights, inside


def _whole_cells(start: Tensor, extent: Tensor, bins: int, size: int):
    """Weights of RoIPool: every cell of each bin by itself, the last one repeated to give bins one length."""
    edges = torch.arange(bins + 1, dtype=start.dtype) * (extent / bins)
    low = (edges[:-1].floor() + start).clamp(0, size)
    high = (edges[1:].ceil() + start).clamp(0, size)
    longest = int((high - low).max())
    if longest <= 0:
        return None
    cell = (low[:, None] + torch.arange(longest, dtype=start.dtype)).minimum(high[:, None] - 1)
    inside = (high > low)[:, None].expand(-1, longest).flatten()
    weights = torch.zeros(bins * longest, size, dtype=torch.float64)
    weights.scatter_(1, cell.clamp(min=0).long().view(-1, 1), 1.0)
    return weights.mul_(inside[:, None]), inside


def _integral(start: Tensor, extent: Tensor, bins: int, size: int) -> Tensor | None:
    """Weights of Precise RoI Pooling: the mean over each bin of each cell's hat function."""
    if not extent > 0:
        return None
    edges = _edges(start, extent, bins)
    t = (edges[:, None] - torch.arange(size)).clamp(-1, 1)
    below = torch.where(t < 0, (t + 1).square() / 2, 1 - (1 - t).square() / 2)
    return (below[1:] - below[:-1]) / (extent.double() / bins)


def _edges(start: Tensor, extent: Tensor, bins: int) -> Tensor:
    return start.double() + torch.arange(bins + 1, dtype=torch.float64) * (extent.double() / bins)


def _axis(low: Tensor, high: Tensor, bins: int, size: int, options: RoIOptions):
    """The `_Axis` of one RoI from its two scaled corners; None where it takes nothing from the map."""
    mode = options.mode
    start, extent = roi_extent(low, high, options.aligned, mode)
    if not torch.isfinite(start + extent):
        return None
    inside = None
    if mode == "exact":
        weights = _integral(start, extent, bins, size)
    elif mode == "pool":
        weights, inside = _whole_cells(start, extent, bins, size) or (None, None)
    else:
        average = mode in AVERAGE_MODES
        weights, inside = _sampled(start, extent, bins, size, options.sampling_ratio, average) or (None, None)
    if weights is None:
        return None
    touched = weights.any(0).nonzero().flatten().tolist()
    if not touched:
        return None
    weights = weights[:, touched[0] : touched[-1] + 1]
    if inside is None:
        return _Axis(touched[0], weights)
    # Of a huge box most bins, and most samples of a bin, lie beside the map.
    grid = inside.view(bins, -1)
    some = grid.any(1).nonzero().flatten()
    outside = ~grid[some].all(1)
    samples = grid[some].any(0).nonzero().flatten()
    weights = weights.unflatten(0, grid.shape)[some][:, samples].flatten(0, 1)
    return _Axis(touched[0], weights, grid[some][:, samples].flatten(), some, outside)


class _Visit(NamedTuple):
    """One RoI that takes something from its feature map."""

    roi: int
    level: int
    window: tuple  # index of the map: batch, channels, rows, columns
    y: _Axis
    x: _Axis


def _visits(features, rois, options):
    """Yields a `_Visit` per RoI, in order. RoIs with a non-finite edge or without a level are left out."""
    check_batch_indices(features, rois)
    rois = rois.detach().cpu().to(torch.promote_types(features[0].dtype, torch.float32))
    levels = assign_levels(
        rois, options.spatial_scales, options.canonical_box_size, options.canonical_level
    ).tolist()
    for index, (roi, level) in enumerate(zip(rois, levels, strict=True)):
        feature = features[level]
        if level < 0 or 0 in feature.shape:
            continue
        corners = roi[1:] * options.spatial_scales[level]
        y = _axis(corners[1], corners[3], options.pooled_height, feature.shape[2], options)
        x = _axis(corners[0], corners[2], options.pooled_width, feature.shape[3], options)
        if y is not None and x is not None:
            rows = slice(y.first, y.first + y.weights.shape[1])
            columns = slice(x.first, x.first + x.weights.shape[1])
            yield _Visit(index, level, (int(roi[0]), slice(None), rows, columns), y, x)


def _dense(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrix products of other layouts take routines whose sums depend on the number of threads."""
    return x.to(dtype).contiguous()


def _product(y: Tensor, window: Tensor, x: Tensor) -> Tensor:
    """``y @ window @ x`` with weights of 0 or more, in which a weight of 0 takes nothing of what is not finite."""
    if bool(window.isfinite().all()):
        return y @ window @ x
    touched_y, touched_x = (y != 0).to(window), (x != 0).to(window)
    product = y @ window.masked_fill(~window.isfinite(), 0) @ x

    def touches(cells):
        return touched_y @ cells.to(window) @ touched_x > 0

    above, below = touches(window == math.inf), touches(window == -math.inf)
    product = product.masked_fill(above, math.inf).masked_fill(below, -math.inf)
    return product.masked_fill(touches(window.isnan()) | (above & below), math.nan)


def _maximum(window: Tensor, y: Tensor, x: Tensor, visit: _Visit):
    """Largest sample of each bin of a (C, h, w) window and its number: (C, B_h, B_w, 1); the samples' shape.

    A sample outside the map is worth 0 and has no gradient: its number is -1. It loses draws.
    """
    inside = (visit.y.inside[:, None] & visit.x.inside).to(window.device)
    samples = _product(y, window, x.T).masked_fill(~inside, -math.inf)
    best, where = _by_bin(samples, _bins(visit)).max(3, keepdim=True)
    outside = (visit.y.outside[:, None] | visit.x.outside).to(window.device)
    from_outside = outside[None, :, :, None] & (best < 0)
    return best.masked_fill(from_outside, 0), where.masked_fill(from_outside, -1), samples.shape


def _bins(visit: _Visit) -> tuple[int, int]:
    """Numbers of bins that have samples on the map."""
    return len(visit.y.bins), len(visit.x.bins)


def _by_bin(samples: Tensor, bins: tuple[int, int]) -> Tensor:
    """(C, B_h * S_h, B_w * S_w) to (C, B_h, B_w, S_h * S_w)."""
    grid = samples.unflatten(2, (bins[1], -1)).unflatten(1, (bins[0], -1))
    return grid.transpose(2, 3).flatten(3)


def _maximum_backward(grad: Tensor, where: Tensor, samples: torch.Size, bins: tuple[int, int]) -> Tensor:
    """The gradient (C, B_h, B_w) of `_maximum`, spread over samples: (C, B_h * S_h, B_w * S_w)."""
    sides = samples[1] // bins[0], samples[2] // bins[1]
    spread = grad.new_zeros(*grad.shape, sides[0] * sides[1])
    spread.scatter_(3, where.clamp(min=0), (grad[..., None] * (where >= 0)))
    return spread.unflatten(3, sides).transpose(2, 3).flatten(3).flatten(1, 2)


def _channel_blocks(visit: _Visit, channels: int):
    block = max(1, _BLOCK // (len(visit.y.weights) * len(visit.x.weights)))
    return (slice(c, min(c + block, channels)) for c in range(0, channels, block))


def roi_align(features: list[Tensor], rois: Tensor, options: RoIOptions) -> Tensor:
    """The operator ``mrcnn_ext::roi_align``, forward."""
    wide = torch.promote_types(features[0].dtype, torch.float32)
    out = empty_like_layout(
        features[0], (rois.shape[0], features[0].shape[1], *options.bins), features[0].dtype
    ).zero_()
    for visit in _visits(features, rois, options):
        window = _dense(features[visit.level][visit.window], wide)
        y, x = visit.y.weights.to(window), visit.x.weights.to(window)
        if options.mode in AVERAGE_MODES:
            out[visit.roi] = _product(y, window, x.T)
        else:
            rows, columns = visit.y.bins[:, None], visit.x.bins
            for block in _channel_blocks(visit, len(window)):
                best = _maximum(window[block], y, x, visit)[0].squeeze(3)
                out[visit.roi, block][:, rows, columns] = best.to(out.dtype)
    return out


def roi_align_backward(
    grad: Tensor,
    features: list[Tensor],
    rois: Tensor,
    options: RoIOptions,
    rois_need_grad: bool,
) -> tuple[list[Tensor], Tensor]:
    """The operator ``mrcnn_ext::roi_align_backward``: gradients of features and, in mode "exact", RoIs."""
    wide = torch.promote_types(features[0].dtype, torch.float32)
    feature_grads = [empty_like_layout(features[0], f.shape, wide).zero_() for f in features]
    rois_grad = torch.zeros((rois.shape[0] if rois_need_grad else 0, 5), dtype=rois.dtype)
    for visit in _visits(features, rois, options):
        window_grad = feature_grads[visit.level][visit.window]
        y, x = visit.y.weights.to(window_grad), visit.x.weights.to(window_grad)
        if options.mode in AVERAGE_MODES:
            window_grad += _product(y.T, _dense(grad[visit.roi], wide), x)
        else:
            window = _dense(features[visit.level][visit.window], wide)
            rows, columns = visit.y.bins[:, None], visit.x.bins
            for block in _channel_blocks(visit, len(window)):
                _, where, samples = _maximum(window[block], y, x, visit)
                bin_grads = _dense(grad[visit.roi, block][:, rows, columns], wide)
                spread = _maximum_backward(bin_grads, where, samples, _bins(visit))
                window_grad[block] += _product(y.T, spread, x)
        if rois_need_grad:
            window = features[visit.level][visit.window]
            scale = options.spatial_scales[visit.level]
            rois_grad[visit.roi] = _roi_grad(
                grad[visit.roi], window, visit, rois[visit.roi], scale, options.aligned
            )
    feature_grads = [g.to(f.dtype) for g, f in zip(feature_grads, features, strict=True)]
    return feature_grads, rois_grad.to(rois.device)


def _roi_grad(
    grad: Tensor, window: Tensor, visit: _Visit, roi: Tensor, scale: float, aligned: bool
) -> Tensor:
    """Gradient of one RoI, (5,), in mode "exact"."""
    grad, window = grad.double().cpu(), window.double().cpu()
    low_x, low_y, high_x, high_y = roi[1:].cpu() * scale
    y_grad = torch.einsum("cpq,chq->ph", grad, window @ visit.x.weights.T)
    x_grad = torch.einsum("cpq,cpw->qw", grad, visit.y.weights @ window)
    grad_low_y, grad_high_y = _corner_grads(y_grad, visit.y, *roi_extent(low_y, high_y, aligned, "exact"))
    grad_low_x, grad_high_x = _corner_grads(x_grad, visit.x, *roi_extent(low_x, high_x, aligned, "exact"))
    zero = torch.zeros((), dtype=torch.float64)
    return torch.stack([zero, grad_low_x, grad_low_y, grad_high_x, grad_high_y]) * scale


def _corner_grads(grad: Tensor, axis: _Axis, start: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the two corners on one axis from that of the weights (P, cells of the window).

    With I the integral of the cell's hat function, weight = (I(high) - I(low)) / (high - low) in a bin with
    edges low and high, and so d weight / d high = (hat(high) - weight) / (high - low); d low has the opposite
    sign. Edge p of P + 1 follows the far corner by p / P, and the near one by the rest.
    """
    bins, cells = grad.shape
    edges = _edges(start, extent, bins)
    hat = (1 - (edges[:, None] - torch.arange(axis.first, axis.first + cells)).abs()).clamp(min=0)
    edge_grad = torch.zeros(bins + 1, dtype=torch.float64)
    edge_grad[1:] += ((hat[1:] - axis.weights) * grad).sum(1)
    edge_grad[:-1] += ((axis.weights - hat[:-1]) * grad).sum(1)
    edge_grad /= extent.double() / bins
    share = torch.arange(bins + 1, dtype=torch.float64) / bins
    return (edge_grad * (1 - share)).sum(), (edge_grad * share).sum()
