"""Keypoint targets and losses against their definitions and against detectron2's."""

import pytest
import torch

from mrcnn_ext.layers.keypoint_targets import (
    axis_distributions,
    axis_loss,
    heatmap_loss,
    keypoints_to_cells,
)


def objects(n, k=5, seed=0):
    """Keypoints in, at the sides of and around boxes with sides that are no whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 3 + torch.rand(n, 2, generator=generator) * 60], dim=1)
    places = torch.rand(n, k, 2, generator=generator) * 1.4 - 0.2
    places[:, 0], places[:, 1] = 0, 1
    places = boxes[:, None, :2] + places * (boxes[:, None, 2:] - boxes[:, None, :2])
    places[:, 1] = boxes[:, 2:]
    visible = torch.randint(0, 3, (n, k, 1), generator=generator).float()
    return torch.cat([places, visible], dim=2), boxes


@pytest.mark.detectron2
@pytest.mark.parametrize("side", [14, 56])
def test_cells_are_those_of_detectron2(side):
    structures = pytest.importorskip("detectron2.structures")
    keypoints, boxes = objects(200)
    index, stock_valid = structures.Keypoints(keypoints).to_heatmap(boxes, side)
    places, valid = keypoints_to_cells(keypoints, boxes, (side, side))
    assert 0.2 < valid.float().mean() < 0.8
    assert torch.equal(valid, stock_valid.bool())
    x, y = places[valid].floor().long().clamp(max=side - 1).unbind(1)
    assert torch.equal(y * side + x, index[valid])


def test_cells_of_a_map_that_is_not_square():
    places, valid = keypoints_to_cells(
        torch.tensor([[[15.0, 40.0, 2.0]]]), torch.tensor([[10.0, 20.0, 30.0, 60.0]]), (8, 4)
    )
    assert places.tolist() == [[[1.0, 4.0]]] and valid.all()


def test_a_box_without_extent_has_no_valid_keypoints():
    _, valid = keypoints_to_cells(
        torch.tensor([[[5.0, 5.0, 2.0]]]), torch.tensor([[5.0, 0.0, 5.0, 9.0]]), (8, 8)
    )
    assert not valid.any()


def test_a_gaussian_has_its_place_as_mean_and_sigma_as_deviation():
    places = torch.tensor([20.3, 31.75])
    target = axis_distributions(places, 56, sigma=2.0)
    centres = torch.arange(56) + 0.5
    mean = target @ centres
    torch.testing.assert_close(target.sum(dim=1), torch.ones(2))
    torch.testing.assert_close(mean, places, rtol=0, atol=1e-3)
    deviation = (target * (centres - mean[:, None]) ** 2).sum(dim=1).sqrt()
    torch.testing.assert_close(deviation, torch.tensor([2.0, 2.0]), rtol=0, atol=1e-3)


def test_no_sigma_gives_one_cell_and_smoothing_spreads_a_part():
    target = axis_distributions(torch.tensor([0.0, 2.9, 4.0]), 4, sigma=0)
    assert target.argmax(dim=1).tolist() == [0, 2, 3] and target.max(dim=1).values.tolist() == [1, 1, 1]
    smooth = axis_distributions(torch.tensor([2.9]), 4, sigma=0, label_smoothing=0.2)
    torch.testing.assert_close(smooth, torch.tensor([[0.05, 0.05, 0.85, 0.05]]))


def test_without_sigma_the_heatmap_loss_is_a_cross_entropy_over_cells():
    logits = torch.randn(6, 5, 7)
    places = torch.rand(6, 2) * torch.tensor([7, 5])
    index = places[:, 1].floor().long() * 7 + places[:, 0].floor().long()
    expected = torch.nn.functional.cross_entropy(logits.flatten(1), index, reduction="sum")
    torch.testing.assert_close(heatmap_loss(logits, places, 0), expected)


@pytest.mark.parametrize(("sigma", "smoothing"), [(0.0, 0.0), (1.5, 0.0), (2.0, 0.1)])
def test_the_loss_of_both_axes_is_that_of_the_sum_of_their_logits(sigma, smoothing):
    x, y = torch.randn(6, 7), torch.randn(6, 5)
    places = torch.rand(6, 2) * torch.tensor([7, 5])
    both = heatmap_loss(y[:, :, None] + x[:, None, :], places, sigma, smoothing)
    axes = [axis_loss(logits, places[:, i], sigma, smoothing) for i, logits in enumerate((x, y))]
    torch.testing.assert_close(sum(axes), both)


def test_the_losses_are_least_at_their_target():
    places = torch.tensor([[3.3, 2.6]])
    x, y = (axis_distributions(places[:, i], n, 1.0) for i, n in enumerate((7, 5)))
    best = (y[:, :, None] * x[:, None, :]).log().requires_grad_()
    heatmap_loss(best, places, 1.0).backward()
    assert best.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_are_computed_in_float32_or_wider(dtype):
    places = torch.rand(3, 2) * 5
    maps = torch.randn(3, 5, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        loss = heatmap_loss(maps, places, 1.0)
        axis = axis_loss(maps[:, 0], places[:, 0], 1.0)
    assert loss.dtype == axis.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        loss.double(), heatmap_loss(maps.double(), places.double(), 1.0), rtol=1e-4, atol=0
    )


def test_no_keypoints_give_a_zero_loss_with_a_gradient():
    logits = torch.randn(0, 5, 5, requires_grad=True)
    loss = heatmap_loss(logits, torch.zeros(0, 2), 1.0)
    loss.backward()
    assert loss == 0 and logits.grad is not None
