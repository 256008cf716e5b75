"""Matches against torchvision's matrix of all overlaps."""

import pytest
import torch
from torchvision.ops import box_iou

from mrcnn_ext.ops.box_matching import match_boxes


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 400
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 120 + 1], 1)


@pytest.mark.parametrize("count, targets", [(1, 1), (700, 3), (5000, 40), (3001, 400)])
def test_equals_the_matrix_of_all_overlaps(count, targets):
    boxes, others = random_boxes(count, 0), random_boxes(targets, 1)
    boxes[::7] = others[torch.arange(len(boxes[::7])) % targets]  # ties, and overlaps of 1
    others[-1] = torch.tensor([900.0, 900.0, 950.0, 950.0])  # overlaps nothing: all boxes are its best
    expected = box_iou(others, boxes)
    matches = match_boxes(boxes, others)
    torch.testing.assert_close(matches.overlaps, expected.amax(0))
    assert torch.equal(matches.overlaps, match_boxes(boxes, others[matches.targets.unique()]).overlaps)
    torch.testing.assert_close(expected.gather(0, matches.targets[None])[0], expected.amax(0))
    assert matches.best.all()
    if targets > 1:
        expected = expected[:-1]
        matches = match_boxes(boxes, others[:-1])
        assert torch.equal(matches.best, (expected == expected.amax(1)[:, None]).any(0))
        assert not matches.best.all() or count < 10


def test_of_several_the_first_and_boxes_without_area():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 5], [20, 20, 10, 10]])
    matches = match_boxes(boxes, torch.tensor([[50.0, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 10]]))
    assert matches.targets.tolist() == [1, 0, 0]
    assert matches.overlaps.tolist() == [1, 0, 0]
    assert matches.best.tolist() == [True, True, True]  # the first target overlaps nothing


def test_errors_name_the_argument():
    assert [len(part) for part in match_boxes(torch.zeros(0, 4), torch.ones(2, 4))] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"boxes must have shape \(R, 4\), got \(3, 5\)"):
        match_boxes(torch.zeros(3, 5), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"targets must have shape \(G, 4\) with G > 0, got \(0, 4\)"):
        match_boxes(torch.zeros(3, 4), torch.zeros(0, 4))
    with pytest.raises(TypeError, match="of one floating dtype, got torch.int64 and torch.float32"):
        match_boxes(torch.zeros(3, 4, dtype=torch.int64), torch.zeros(1, 4))
