"""Non-maximum suppression in rounds: torchvision's, one box after the other."""

import pytest
import torch
from torchvision.ops import nms

from mrcnn_ext.layers import suppression
from mrcnn_ext.layers.suppression import suppress


def boxes_of(groups, count, seed=0, extent=60):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, count, 2, generator=generator) * extent
    return torch.cat([corners, corners + 5 + 30 * torch.rand(corners.shape, generator=generator)], 2)


def one_by_one(boxes, valid, threshold, classes):
    keep = torch.zeros_like(valid)
    for group in range(len(boxes)):
        for index in classes[group].unique():
            members = (valid[group] & (classes[group] == index)).nonzero()[:, 0]
            scores = -members.to(boxes.dtype)  # the best first
            keep[group, members[nms(boxes[group, members], scores, threshold)]] = True
    return keep


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_torchvision(threshold, dtype):
    boxes = boxes_of(4, 150).to(dtype)
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(4, 150, generator=generator) < 0.9
    valid[2] = False
    classes = torch.randint(0, 3, (4, 150), generator=generator)
    one = torch.zeros_like(classes)
    for given, of in ((classes, classes), (None, one)):
        keep, settled = suppress(boxes, valid, threshold, given)
        assert settled and torch.equal(keep, one_by_one(boxes, valid, threshold, of))


def test_overlaps_at_the_threshold():
    # Boxes of 10 x 1 that share 4 of 16: exactly 0.25.
    boxes = torch.tensor([[[0.0, 0, 10, 1], [6, 0, 16, 1]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    for threshold, kept in ((0.25, 2), (0.2499999, 1)):
        assert suppress(boxes, valid, threshold).keep.sum() == kept
    # 1 of 10 is 0.1 in float32, which is more than the double 0.1.
    boxes = torch.tensor([[[0.0, 0, 10, 1], [0, 0, 1, 1]]])
    keep, _ = suppress(boxes, valid, 0.1)
    assert torch.equal(keep, one_by_one(boxes, valid, 0.1, torch.zeros(1, 2))) and keep.sum() == 1


def test_a_chain_longer_than_the_rounds_is_told():
    steps = torch.arange(40.0)
    chain = torch.stack([steps, 0 * steps, steps + 2.5, 0 * steps + 1], 1)[None]  # each overlaps the next
    valid = torch.ones(1, 40, dtype=torch.bool)
    keep, settled = suppress(chain, valid, 0.4, rounds=10)
    assert not settled
    for rounds in (40, 1000):
        keep, settled = suppress(chain, valid, 0.4, rounds=rounds)
        assert settled and torch.equal(keep[0], steps % 2 == 0)


def test_groups_are_taken_in_parts(monkeypatch):
    boxes, valid = boxes_of(5, 30), torch.ones(5, 30, dtype=torch.bool)
    classes = torch.arange(150).view(5, 30) % 2
    expected = suppress(boxes, valid, 0.3, classes)
    monkeypatch.setattr(suppression, "_PAIRS", 1800)
    found = suppress(boxes, valid, 0.3, classes)
    assert torch.equal(found.keep, expected.keep) and found.settled
    alone = torch.cat([suppress(group[None], valid[:1], 0.3).keep for group in boxes])
    assert torch.equal(suppress(boxes, valid, 0.3).keep, alone)


def test_no_boxes_and_no_groups():
    boxes, valid = torch.zeros(5, 0, 4), torch.zeros(5, 0, dtype=torch.bool)
    for some in (slice(5), slice(0)):
        keep, settled = suppress(boxes[some], valid[some], 0.3)
        assert settled and keep.shape == valid[some].shape
