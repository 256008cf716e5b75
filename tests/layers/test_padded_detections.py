"""Detections of fixed shapes against those of `select_detections`."""

import pytest
import torch

from mrcnn_ext.layers.detections import select_detections
from mrcnn_ext.layers.padded_detections import PADDING, is_padding, pad_detections

SIZES = [(90, 80), (60, 100)]


def predictions(agnostic, rois=120, classes=9):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(2, rois, 1 if agnostic else classes, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 20 + 30 * torch.rand(corners.shape, generator=generator)], dim=3)
    return boxes, torch.rand(2, rois, classes, generator=generator)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(
    "topk, threshold", [(10, 0.02), (100, 0.02), (100, 0.9), (5000, 0.9), (100, 1.0), (0, 0.02)]
)
@pytest.mark.parametrize("min_size", [None, 25.0])
def test_as_those_of_one_image(agnostic, topk, threshold, min_size):
    boxes, scores = predictions(agnostic)
    valid = torch.ones(2, 120, dtype=torch.bool)
    found = pad_detections(boxes, scores, valid, SIZES, threshold, 0.5, topk, min_size)
    assert found.exact
    for image, size in enumerate(SIZES):
        expected = select_detections(boxes[image], scores[image], size, threshold, 0.5, topk, min_size)
        count = len(expected.scores)
        for ours, one in zip(found[:4], expected, strict=True):
            assert torch.equal(ours[image, :count], one)
        assert is_padding(found.scores[image]).tolist() == [False] * count + [True] * (
            found.scores.shape[1] - count
        )
        assert not found.boxes[image, count:].any() and not found.rows[image, count:].any()


def test_what_is_no_number_or_padding_is_left_out():
    boxes, scores = predictions(False)
    valid = torch.ones(2, 120, dtype=torch.bool)
    expected = pad_detections(boxes[:, 5:], scores[:, 5:], valid[:, 5:], SIZES, 0.02, 0.5, 20)
    scores[:, 0] = 1.0
    boxes[:, 0, 3] = torch.nan
    scores[:, 1, 2] = torch.inf
    boxes[:, 2], scores[:, 2] = torch.inf, 0.99
    valid[:, 3:5] = False
    found = pad_detections(boxes, scores, valid, SIZES, 0.02, 0.5, 20)
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.rows, expected.rows + 5)


def test_too_few_candidates_are_told():
    """Eight candidates for each detection wanted are all one box: more are needed."""
    boxes = torch.tensor([10.0, 10, 40, 40]).expand(1, 200, 1, 4).clone()
    boxes[:, 150:] += torch.arange(50.0)[:, None, None] * 40
    scores = torch.linspace(0.9, 0.5, 200)[None, :, None]
    valid = torch.ones(1, 200, dtype=torch.bool)
    size = [(4000, 4000)]
    assert not pad_detections(boxes, scores, valid, size, 0.1, 0.5, 5).exact
    assert pad_detections(boxes, scores, valid, size, 0.1, 0.5, 30).exact
    assert pad_detections(boxes, scores, valid, size, 0.88, 0.5, 5).exact  # all that pass were looked at


def test_scores_computed_of_padding_are_padding():
    scores = torch.tensor([0.0, PADDING, PADDING * 0.0, PADDING * 0.5, 1.0])
    assert is_padding(scores).tolist() == [False, True, True, True, False]
