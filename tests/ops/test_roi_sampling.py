"""The samples that are shown are those that the operator takes: their mean, or maximum, is its result."""

import pytest
import torch

from mrcnn_ext.layers import roi_align_pyramid
from mrcnn_ext.ops.roi_options import RoIOptions
from mrcnn_ext.ops.roi_sampling import roi_samples

SCALES = [1 / 4, 1 / 8]
BOX = torch.tensor([21.3, 17.9, 61.2, 73.4])


def bilinear(feature, y, x):
    """A (H, W) map at (Y,) x (X,) positions within it."""

    def weights(position, size):
        return (1 - (position[:, None] - torch.arange(size)).abs()).clamp(min=0)

    return weights(y, feature.shape[0]) @ feature @ weights(x, feature.shape[1]).T


def pooled(features, options, box=BOX):
    rois = torch.cat([torch.zeros(1), box])[None]
    return roi_align_pyramid(features, rois, options.bins, *options[:1], *options[3:])[0, 0]


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64) for side in (28, 14)]


@pytest.mark.parametrize("mode", ["avg", "max", "warp_avg", "warp_max", "pool"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("canonical", [40.0, 120.0])
def test_samples_give_the_result(features, mode, aligned, sampling_ratio, canonical):
    options = RoIOptions(SCALES, 3, 4, sampling_ratio, aligned, mode, canonical, 3)
    level, y, x = roi_samples(BOX, options)
    assert level == (1 if canonical == 40 else 0)
    assert len(y.points) == 3 and len(x.points) == 4
    samples = bilinear(features[level][0, 0], y.points.flatten(), x.points.flatten())
    by_bin = samples.unflatten(1, (4, -1)).unflatten(0, (3, -1)).transpose(1, 2).flatten(2)
    expected = by_bin.mean(2) if mode.endswith("avg") else by_bin.max(2).values
    torch.testing.assert_close(pooled(features, options), expected, rtol=1e-5, atol=1e-5)


def test_edges_of_exact_bound_what_is_integrated(features):
    options = RoIOptions(SCALES, 3, 4, 0, True, "exact", 120.0, 3)
    level, y, x = roi_samples(BOX, options)
    assert y.points.numel() == x.points.numel() == 0

    def midpoints(edges, steps=400):
        inside = (torch.arange(steps) + 0.5) / steps
        return (edges[:-1, None] + (edges[1:] - edges[:-1])[:, None] * inside).flatten()

    samples = bilinear(features[level][0, 0], midpoints(y.edges), midpoints(x.edges))
    expected = samples.unflatten(1, (4, -1)).unflatten(0, (3, -1)).mean((1, 3))
    torch.testing.assert_close(pooled(features, options), expected, rtol=1e-4, atol=1e-4)


def test_bins_of_whole_cells_cover_the_roi():
    options = RoIOptions([1 / 4], 3, 3, 0, False, "pool", 224.0, 4)
    _, y, x = roi_samples(torch.tensor([8.0, 9.9, 27.9, 31.0]), options)
    assert x.points.tolist() == [[2, 3], [4, 5], [6, 7]]
    assert y.points.tolist() == [
        [2, 3, 4],
        [4, 5, 6],
        [6, 7, 8],
    ]  # 7 cells in 3 bins: they share cells 4 and 6
    assert x.edges.tolist() == [1.5, 3.5, 5.5, 7.5]


@pytest.mark.parametrize("box", [[0, 0, float("nan"), 4], [8.0, 0, 4, 4], [4.0, 4, 4, 4]])
def test_a_box_of_no_area_is_refused(box):
    with pytest.raises(ValueError, match="box"):
        roi_samples(torch.tensor(box), RoIOptions(SCALES, 2, 2, 0, True, "avg", 224.0, 4))
