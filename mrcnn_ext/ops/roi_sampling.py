"""Where the RoI layers look: the bins and sample points that `roi_align_pyramid` takes for a box, to be shown."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .roi_align_eager import assign_levels, roi_extent
from .roi_options import RoIOptions

__all__ = ["AxisSamples", "RoISamples", "roi_samples"]


class AxisSamples(NamedTuple):
    """Along one axis, in feature cells: position i is the centre of cell i.

    Attributes:
        edges: (P + 1,) float64, edges of the bins: the RoI as the layer sees it. Of "pool", whose bins are ranges of
            whole cells that may overlap, those of an equal division.
        points: (P, S) float64, the samples of each bin: the centres of the cells of "pool", of which shorter bins
            repeat the last; empty, S = 0, of "exact", which integrates.
    """

    edges: Tensor
    points: Tensor


class RoISamples(NamedTuple):
    """
    Attributes:
        level: index of the feature map that the box is pooled from.
        y, x: its samples along each axis; those of the layer are their product.
    """

    level: int
    y: AxisSamples
    x: AxisSamples


def roi_samples(box: Tensor, options: RoIOptions) -> RoISamples:
    """The samples of one box, before those beyond the map are left out.

    Args:
        box: (4,) x0, y0, x1, y1 in pixels of the input image.
        options: of the pooling.

    Raises:
        ValueError: the box is not finite, or has no level or no extent.
    """
    roi = torch.cat([torch.zeros(1), box.detach().cpu().float()])[None]
    scales = list(options.spatial_scales)
    level = int(assign_levels(roi, scales, options.canonical_box_size, options.canonical_level))
    corners = roi[0, 1:] * scales[level]
    if level < 0 or not bool(corners.isfinite().all()):
        raise ValueError(
            f"the box {box.tolist()} is pooled from nowhere: its area is negative or not a number"
        )
    y = _axis(corners[1], corners[3], options.pooled_height, options)
    x = _axis(corners[0], corners[2], options.pooled_width, options)
    return RoISamples(level, y, x)


def _axis(low: Tensor, high: Tensor, bins: int, options: RoIOptions) -> AxisSamples:
    start, extent = roi_extent(low, high, options.aligned, options.mode)
    if not extent > 0:
        raise ValueError("the box has no extent: its corners must be apart")
    size = extent / bins
    number = torch.arange(bins, dtype=torch.float64)
    edges = start.double() + torch.arange(bins + 1, dtype=torch.float64) * size.double()
    if options.mode == "pool":
        # A cell covers half a cell to either side of its centre.
        return AxisSamples(edges - 0.5, _whole_cells(start, size, bins))
    if options.mode == "exact":
        return AxisSamples(edges, torch.zeros(bins, 0, dtype=torch.float64))
    samples = options.sampling_ratio if options.sampling_ratio > 0 else math.ceil(size)
    offsets = (torch.arange(samples, dtype=torch.float64) + 0.5) * size.double() / samples
    return AxisSamples(edges, start.double() + number[:, None] * size.double() + offsets)


def _whole_cells(start: Tensor, size: Tensor, bins: int) -> Tensor:
    edges = torch.arange(bins + 1, dtype=start.dtype) * size
    low, high = (edges[:-1].floor() + start).double(), (edges[1:].ceil() + start).double()
    cells = low[:, None] + torch.arange(int((high - low).max()), dtype=torch.float64)
    return cells.minimum(high[:, None] - 1)
