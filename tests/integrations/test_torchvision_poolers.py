import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign, roi_align

from mrcnn_ext.integrations.torchvision import FusedMultiScaleRoIAlign

SHAPES = [(256, 384), (250, 300)]


@pytest.fixture
def pyramid():
    generator = torch.Generator().manual_seed(0)
    features = {
        str(level): torch.randn(2, 5, 64 >> level, 96 >> level, generator=generator) for level in range(4)
    }
    return {**features, "pool": torch.randn(2, 5, 4, 6, generator=generator)}


def random_boxes(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([300.0, 200.0]) - 10
    return torch.cat([corner, corner + 2 ** (1 + 7 * torch.rand(count, 2, generator=generator))], dim=1)


@pytest.mark.parametrize("sampling_ratio", [-1, 0, 2])
@pytest.mark.parametrize("output_size", [7, (3, 5), [14]])
@pytest.mark.parametrize("names", [["0", "1", "2", "3"], ["1", "2"], ["2"]])
def test_equals_torchvision(pyramid, names, output_size, sampling_ratio):
    if output_size == [14]:
        output_size = (14, 14)
    boxes = [random_boxes(40), random_boxes(3, seed=2)]
    ours, stock = (
        pooler(names, output_size, sampling_ratio) for pooler in (FusedMultiScaleRoIAlign, MultiScaleRoIAlign)
    )
    torch.testing.assert_close(
        ours(pyramid, boxes, SHAPES), stock(pyramid, boxes, SHAPES), rtol=1e-4, atol=1e-5
    )


def test_gradients_equal_torchvisions(pyramid):
    boxes = [random_boxes(20), random_boxes(7, seed=2)]
    grads = []
    for pooler in (FusedMultiScaleRoIAlign, MultiScaleRoIAlign):
        features = {name: feature.clone().requires_grad_() for name, feature in pyramid.items()}
        out = pooler(["0", "1", "2", "3"], 7, 2)(features, boxes, SHAPES)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads.append([features[name].grad for name in ("0", "1", "2", "3")])
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_boxes_change_level_at_torchvisions_sizes():
    # Maps of a constant each: the result says which level a box went to.
    pyramid = {str(k): torch.full((1, 1, 256 >> k, 256 >> k), float(k)) for k in range(4)}
    steps = torch.arange(-40, 40, dtype=torch.int32)
    sides = [
        (torch.tensor(side).view(torch.int32) + steps).view(torch.float32) for side in (112.0, 224.0, 448.0)
    ]
    sides = torch.cat(sides)
    boxes = [torch.stack([torch.zeros_like(sides), torch.zeros_like(sides), sides, sides], dim=1)]
    ours, stock = (
        pooler(["0", "1", "2", "3"], 1, 2)(pyramid, boxes, [(1024, 1024)]).flatten()
        for pooler in (FusedMultiScaleRoIAlign, MultiScaleRoIAlign)
    )
    assert set(stock.tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(ours, stock)


def test_no_boxes(pyramid):
    boxes = [torch.zeros(0, 4), torch.zeros(0, 4)]
    assert FusedMultiScaleRoIAlign(["0", "1"], (2, 3), 2)(pyramid, boxes, SHAPES).shape == (0, 5, 2, 3)


def test_canonical_size_and_level_are_used(pyramid):
    boxes = [random_boxes(40), random_boxes(3, seed=2)]
    settings = {"canonical_scale": 60, "canonical_level": 3}
    ours, stock = (
        pooler(["0", "1", "2", "3"], 4, 2, **settings)(pyramid, boxes, SHAPES)
        for pooler in (FusedMultiScaleRoIAlign, MultiScaleRoIAlign)
    )
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-5)


def test_aligned_puts_cell_centres_at_half_integers(pyramid):
    boxes = [random_boxes(10), random_boxes(3, seed=2)]
    out = FusedMultiScaleRoIAlign(["1"], 7, 2, aligned=True)(pyramid, boxes, SHAPES)
    expected = roi_align(pyramid["1"], boxes, 7, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_names_that_are_not_there(pyramid):
    with pytest.raises(ValueError, match=r"featmap_names \['p2'\]"):
        FusedMultiScaleRoIAlign(["p2"], 7, 2)(pyramid, [random_boxes(1)], SHAPES[:1])


def test_levels_that_are_no_pyramid(pyramid):
    with pytest.raises(ValueError, match="consecutive powers of two"):
        FusedMultiScaleRoIAlign(["0", "2"], 7, 2)(pyramid, [random_boxes(1)], SHAPES[:1])
