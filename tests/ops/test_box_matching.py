"""Matches against torchvision's matrix of all overlaps."""

import pytest
import torch
from torchvision.ops import box_iou

from mrcnn_ext.ops import _extension, box_matching
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


@pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_compiled_bit_for_bit(dtype, thread_counts, monkeypatch):
    boxes, targets = random_boxes(4000, 2).to(dtype), random_boxes(60, 3).to(dtype)
    boxes[::9], boxes[5] = targets[torch.arange(len(boxes[::9])) % 60], boxes[5, [2, 3, 0, 1]]
    targets[7] = torch.tensor([900.0, 900.0, 950.0, 950.0])
    compiled = [match_boxes(boxes, targets) for _ in thread_counts]
    torch.library.opcheck(torch.ops.mrcnn_ext.match_boxes, (boxes[:9], targets[:3]))
    monkeypatch.setattr(box_matching, "_is_compiled_for", lambda *args: False)
    expected = match_boxes(boxes, targets)
    for matches in compiled:
        assert all(map(torch.equal, matches, expected))


def test_boxes_that_are_not_finite_are_matched_without_the_compiled_operator():
    boxes, targets = random_boxes(20, 2), random_boxes(3, 3)
    boxes[4, 1], boxes[5, 2] = float("nan"), float("inf")
    assert not box_matching._is_compiled_for(boxes, targets)
    matches = match_boxes(boxes, targets)
    fine = torch.ones(20, dtype=torch.bool)
    fine[4:6] = False
    assert torch.equal(matches.overlaps[fine], match_boxes(boxes[fine], targets).overlaps)
