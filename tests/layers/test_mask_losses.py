"""Mask losses and what the logits stand for, against plain loops."""

import math

import pytest
import torch

from mrcnn_ext.layers.mask_losses import (
    boundary_loss,
    mask_boundaries,
    mask_iou_targets,
    mask_log_odds,
    mask_sigmoid_loss,
    mask_softmax_loss,
)

K, SIDE = 3, 4


@pytest.fixture
def rois():
    """Logits (with a background), classes and masks of 5 RoIs, in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, K + 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 1, 2, 2, 0])
    masks = torch.rand(5, SIDE, SIDE, generator=generator, dtype=torch.float64).round()
    return logits, classes, masks


def pixels(masks):
    return [(r, y, x) for r in range(len(masks)) for y in range(SIDE) for x in range(SIDE)]


@pytest.mark.parametrize("agnostic", [False, True])
def test_sigmoid_loss_is_binary_cross_entropy_of_the_class(rois, agnostic):
    logits, classes, masks = rois
    logits = logits[:, :1] if agnostic else logits[:, :K]
    total = 0.0
    for r, y, x in pixels(masks):
        probability = 1 / (1 + math.exp(-logits[r, 0 if agnostic else classes[r], y, x]))
        total -= math.log(probability if masks[r, y, x] == 1 else 1 - probability)
    assert mask_sigmoid_loss(logits, classes, masks).item() == pytest.approx(total / masks.numel(), rel=1e-12)


@pytest.mark.parametrize("agnostic", [False, True])
def test_softmax_loss_is_cross_entropy_over_classes_and_background(rois, agnostic):
    logits, classes, masks = rois
    logits = logits[:, :2] if agnostic else logits
    total = 0.0
    for r, y, x in pixels(masks):
        odds = [math.exp(value) for value in logits[r, :, y, x].tolist()]
        own = 0 if agnostic else int(classes[r])
        total -= math.log(odds[own if masks[r, y, x] == 1 else -1] / sum(odds))
    assert mask_softmax_loss(logits, classes, masks).item() == pytest.approx(total / masks.numel(), rel=1e-12)


def test_log_odds_are_those_of_the_softmax(rois):
    logits, classes, _ = rois
    expected = torch.stack([logits[r].softmax(dim=0)[c] for r, c in enumerate(classes)])
    torch.testing.assert_close(mask_log_odds(logits, classes, True).sigmoid(), expected)
    # Class-agnostic, whatever the class; and of the sigmoid they are the logits.
    expected = logits[:, :2].softmax(dim=1)[:, 0]
    torch.testing.assert_close(mask_log_odds(logits[:, :2], classes, True).sigmoid(), expected)
    assert torch.equal(mask_log_odds(logits[:, :1], classes), logits[:, 0])
    assert torch.equal(mask_log_odds(logits, classes)[3], logits[3, 2])


def test_certain_pixels_have_finite_log_odds():
    logits = torch.tensor([200.0, -200.0, 0.0])[None, :, None, None]
    assert mask_log_odds(logits, torch.tensor([0]), True).item() == 200
    assert mask_log_odds(logits, torch.tensor([1]), True).item() == -400


def test_iou_target_counts_the_object_outside_the_roi():
    predicted = torch.zeros(4, 4, 4, dtype=torch.bool)
    predicted[:3, :2] = True  # 8 pixels; the last mask is empty
    masks = torch.zeros(4, 4, 4)
    masks[:3, 1:3] = 1  # 8 pixels, 4 of them predicted
    # All of the object in the RoI; as much again outside; an area that rasterisation made too small; nothing.
    areas = torch.tensor([8.0, 16.0, 7.0, 0.0])
    expected = torch.tensor([4 / 12, 4 / 20, 4 / 12, 0.0])
    torch.testing.assert_close(mask_iou_targets(predicted, masks, areas), expected)


def test_boundary_is_where_a_neighbour_is_outside():
    masks = (torch.rand(4, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.9).float()
    masks[1], masks[2] = 1, 0
    for mask, boundary in zip(masks, mask_boundaries(masks), strict=True):
        for y in range(9):
            for x in range(11):
                near = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
                inside = all(0 <= v < 9 and 0 <= u < 11 and mask[v, u] == 1 for v, u in near)
                assert boundary[y, x] == (mask[y, x] == 1 and not inside)


def test_boundary_loss_is_cross_entropy_plus_dice(rois):
    logits, _, masks = rois
    logits, masks = logits[:, 0], masks.clone()
    masks[4] = 0
    expected = 0.0
    for logit, mask in zip(logits, masks, strict=True):
        probability = 1 / (1 + (-logit).exp())
        entropy = -(mask * probability.log() + (1 - mask) * (1 - probability).log()).mean()
        overlap, total = (probability * mask).sum(), (probability.square() + mask.square()).sum()
        expected += (entropy + 1 - 2 * overlap / (total + 1)).item() / len(masks)
    assert boundary_loss(logits, masks).item() == pytest.approx(expected, rel=1e-9)
