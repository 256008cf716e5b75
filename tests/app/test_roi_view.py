"""The RoI view is the operator's: its level, its samples, its outputs."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from mrcnn_ext.app.roi_view import (
    LAYERS,
    Projection,
    Pyramid,
    change_by_shift,
    moved,
    pooled,
    relative_change,
    samples,
)
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.modeling import FusedROIPooler
from mrcnn_ext.ops.roi_options import RoIOptions

pytestmark = pytest.mark.detectron2

BOX = torch.tensor([10.7, 13.1, 41.9, 52.3])


@pytest.fixture
def pyramid():
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(1, 6, side, side, generator=generator) for side in (32, 16)]
    return Pyramid(maps, RoIOptions([1 / 4, 1 / 8], 7, 7, 0, True, "avg", 40.0, 2), ("p2", "p3"))


@pytest.fixture
def smooth():
    """A map that rises evenly to the right and down: what is pooled tells where the box is."""
    row = torch.arange(32.0)
    maps = [torch.stack([row.expand(32, 32), row[:, None].expand(32, 32)])[None]]
    return Pyramid(maps, RoIOptions([1 / 4], 7, 7, 2, True, "avg", 224.0, 4), ("p2",))


@pytest.mark.parametrize(
    "layer, name",
    [
        ("RoIPool", "ROIPool"),
        ("RoIWarp", "ROIWarpAvg"),
        ("RoIAlign", "ROIAlignV2"),
        ("PrRoIPool", "PrROIPool"),
    ],
)
def test_a_layer_is_the_pooler_of_its_name(pyramid, layer, name):
    from detectron2.structures import Boxes

    options = pyramid.options
    pooler = FusedROIPooler(7, options.spatial_scales, 0, name, 40, 2)
    for box in (BOX, BOX / 2, BOX * 2):
        expected = pooler(pyramid.maps, [Boxes(box[None])])
        assert torch.equal(pooled(pyramid, box[None], layer), expected)


def test_a_moved_box_stays_on_its_level(pyramid):
    box = torch.tensor([0.0, 0.0, 79.999, 80.0])  # just below the next level
    assert samples(pyramid, box, "RoIAlign").level == 0
    assert samples(pyramid, box * 1.01, "RoIAlign").level == 1
    both = pooled(pyramid, torch.stack([box, box * 1.01]), "RoIAlign")
    assert relative_change(both[1], both[0]) < 0.5


def test_only_rounding_layers_jump(smooth):
    stride = smooth.stride(0)
    box = torch.tensor([8.8, 8.8, 64.8, 64.8])  # corners at 2.2 and 16.2 cells
    shifts = [0.0, 0.1, 0.2, 0.29, 0.31, 0.4]
    changes = change_by_shift(smooth, box, shifts)
    for layer in ("RoIPool", "RoIWarp"):  # 2.5 cells, where they round up, is 0.3 cells away
        assert changes[layer][:4] == [0, 0, 0, 0]
        assert changes[layer][4] == changes[layer][5] > 0
    for layer in ("RoIAlign", "PrRoIPool"):
        assert np.allclose(np.diff(changes[layer]), np.diff(shifts) * changes[layer][1] / 0.1, rtol=1e-3)
        # Where the box is can be read from what is pooled: the map's value is its column.
        centre = pooled(smooth, moved(box, 0.25, 0, stride)[None], layer)[0, 0].mean()
        assert float(centre) == pytest.approx((8.8 + 64.8) / 2 / 4 + 0.25 - 0.5, abs=1e-4)
    down = change_by_shift(smooth, box, [0.4], vertical=True)
    assert down["RoIAlign"] == pytest.approx(changes["RoIAlign"][5:], rel=1e-4)


def test_a_box_without_area_is_refused(pyramid):
    with pytest.raises(UserError, match="extent"):
        samples(pyramid, torch.tensor([5.0, 5.0, 5.0, 9.0]), "RoIAlign")


def test_projections_share_one_scale(pyramid):
    outputs = [pooled(pyramid, BOX[None], layer)[0] for layer in LAYERS]
    for kind, shape in (("PCA", (7, 7, 3)), ("mean", (7, 7)), (4, (7, 7))):
        images = [Projection(outputs, kind)(output) for output in outputs]
        assert all(image.shape == shape for image in images)
        assert min(image.min() for image in images) == 0
        assert max(image.max() for image in images) == pytest.approx(1)
    channel = Projection(outputs, 4)
    low, high = (f(*(output[4] for output in outputs)) for f in (least, most))
    assert np.allclose(channel(outputs[1]), ((outputs[1][4] - low) / (high - low)).numpy(), atol=1e-6)


def least(*tensors):
    return min(float(tensor.min()) for tensor in tensors)


def most(*tensors):
    return max(float(tensor.max()) for tensor in tensors)


def test_components_are_those_of_largest_variance():
    generator = torch.Generator().manual_seed(1)
    strong = torch.randn(1, 7, 7, generator=generator)
    output = torch.cat([0.01 * torch.randn(3, 7, 7, generator=generator), 5 * strong])
    red = Projection([output], "PCA")(output)[:, :, 0]
    assert (
        np.corrcoef(red.flatten(), strong.flatten())[0, 1] > 0.999
    )  # its sign is that of the largest channel


def test_features_that_are_all_alike_have_one_colour():
    output = torch.ones(4, 7, 7)
    assert Projection([output], "PCA")(output).std() == 0
    assert Projection([output], "mean")(output).std() == 0
