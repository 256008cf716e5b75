"""The judge of RoI pooling: the definitions, in loops, in float64.

A bin is a list of samples, a sample a weight and the cells it reads, a cell its row, column and bilinear
weight. Only the edges of RoIs and the positions of samples are computed in the precision of the operator
(float32 unless the features are float64), because the number of samples depends on rounding.
"""

import math

import numpy as np


def roi_align_reference(
    features, rois, spatial_scales, output_size, sampling_ratio, aligned, mode, grad=None, canonical=(224, 4)
):
    """Pools, and where `grad` is given also backpropagates it.

    Args:
        features: list of arrays (N, C, H_l, W_l).
        rois: (R, 5).
        grad: (R, C, P_h, P_w).

    Returns:
        (R, C, P_h, P_w), and a list of arrays shaped as the features (zeros without `grad`), in float64.
    """
    real = np.float64 if features[0].dtype == np.float64 else np.float32
    features = [f.astype(np.float64) for f in features]
    rois = rois.astype(real)
    out = np.zeros((len(rois), features[0].shape[1], *output_size))
    feature_grads = [np.zeros_like(f) for f in features]
    for r, roi in enumerate(rois):
        level = level_of(roi, spatial_scales, *canonical)
        if level is None or not np.isfinite(roi).all():
            continue
        image, scale = features[level][int(roi[0])], real(spatial_scales[level])
        image_grad = feature_grads[level][int(roi[0])]
        with np.errstate(over="ignore", invalid="ignore"):
            rows = axis_bins(
                roi[2], roi[4], scale, output_size[0], image.shape[1], sampling_ratio, aligned, mode
            )
            columns = axis_bins(
                roi[1], roi[3], scale, output_size[1], image.shape[2], sampling_ratio, aligned, mode
            )
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                samples, all_inside = bin_samples(row, column)
                for c in range(len(image)):
                    weighted = [
                        (sum(w * image[c, y, x] for y, x, w in cells), s, cells) for s, cells in samples
                    ]
                    if mode in ("avg", "warp_avg", "exact"):
                        taken = [(s, cells) for _, s, cells in weighted]
                        out[r, c, i, j] = sum(value * s for value, s, _ in weighted)
                    else:
                        taken = []
                        value = 0.0
                        if weighted:
                            value, _, cells = max(weighted, key=lambda sample: sample[0])
                            taken = [(1.0, cells)]
                        if not all_inside and value < 0:
                            value, taken = 0.0, []
                        out[r, c, i, j] = value
                    if grad is not None:
                        for s, cells in taken:
                            for y, x, w in cells:
                                image_grad[c, y, x] += s * w * grad[r, c, i, j]
    return out, feature_grads


def level_of(roi, spatial_scales, canonical_box_size, canonical_level):
    """FPN eq. 1, in float32 as detectron2 computes it."""
    if len(spatial_scales) == 1:
        return 0
    roi = roi.astype(np.float32)
    with np.errstate(all="ignore"):
        area = (roi[3] - roi[1]) * (roi[4] - roi[2])
        level = np.floor(canonical_level + np.log2(np.sqrt(area) / np.float32(canonical_box_size) + 1e-8))
    if np.isnan(level):
        return None
    finest = round(-math.log2(spatial_scales[0]))
    return int(min(max(level - finest, 0), len(spatial_scales) - 1))


def round_half_away(value):
    whole = np.trunc(value)
    return whole + (np.sign(value) if np.abs(value - whole) >= 0.5 else type(value)(0))


def axis_bins(low, high, scale, bins, size, sampling_ratio, aligned, mode):
    """One axis of a RoI: per bin its samples inside the map, and whether these are all.

    A sample is (weight, [(cell, weight), ...]).
    """
    real = type(scale)
    offset = real(0.5) if aligned else real(0)
    if mode in ("pool", "warp_avg", "warp_max"):
        start = round_half_away(low * scale)
        extent = max(round_half_away(high * scale) - start + real(1), real(1))
        if mode != "pool":
            start = start - offset
    else:
        start = low * scale - offset
        extent = high * scale - offset - start
        if not aligned and mode != "exact":
            extent = max(extent, real(1))
    if not (np.isfinite(start) and np.isfinite(extent)):
        return [([], False)] * bins
    if mode == "pool":
        return [whole_cells(start, extent / real(bins), p, size) for p in range(bins)]
    if mode == "exact":
        return [interval(start, extent, bins, p, size) for p in range(bins)]
    bin_size = extent / real(bins)
    samples = sampling_ratio if sampling_ratio > 0 else int(np.ceil(bin_size))
    return [regular_samples(start, bin_size, samples, p, size) for p in range(bins)]


def regular_samples(start, bin_size, count, p, size):
    real = type(start)
    inside = []
    for i in range(count):
        position = start + real(p) * bin_size + (real(i) + real(0.5)) * bin_size / real(count)
        if -1 <= position <= size:
            inside.append((1 / count, interpolate(min(max(float(position), 0.0), size - 1.0), size)))
    return inside, len(inside) == count


def interpolate(position, size):
    """The cells a position lies between, with their weights; nothing is read outside the map."""
    low = math.floor(position)
    cells = [(low, 1 - (position - low)), (low + 1, position - low)]
    return [(cell, weight) for cell, weight in cells if 0 <= cell < size]


def whole_cells(start, bin_size, p, size):
    real = type(start)
    first = int(np.clip(np.floor(real(p) * bin_size) + start, 0, size))
    end = int(np.clip(np.ceil(real(p + 1) * bin_size) + start, 0, size))
    return [(1.0, [(cell, 1.0)]) for cell in range(first, end)], True


def interval(start, extent, bins, p, size):
    """Integrates the interpolant: it is linear between whole numbers, where the value midway is the mean."""
    if extent <= 0:
        return [], False
    start, extent = float(start), float(extent)
    low, high = start + extent * p / bins, start + extent * (p + 1) / bins
    first, last = max(math.floor(low), -2), min(math.ceil(high), size + 1)
    edges = [low, *(k for k in range(first, last + 1) if low < k < high), high]
    pieces = [(b - a, interpolate((a + b) / 2, size)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return [(length / (high - low), cells) for length, cells in pieces if length > 0 and cells], True


def bin_samples(row, column):
    """The product of the samples of two axes."""
    (rows, rows_inside), (columns, columns_inside) = row, column
    samples = [
        (sy * sx, [(y, x, wy * wx) for y, wy in ys for x, wx in xs]) for sy, ys in rows for sx, xs in columns
    ]
    return samples, rows_inside and columns_inside
