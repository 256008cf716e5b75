"""For each of many boxes the one of a few that it overlaps most, without the matrix of all overlaps."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension

__all__ = ["BoxMatches", "match_boxes"]

_AT_ONCE = 64 * 1024  # overlaps, so that what they are computed from stays in the cache
_LARGEST = 1e15  # coordinate with which no product overflows


class BoxMatches(NamedTuple):
    """What `match_boxes` found.

    Attributes:
        overlaps: (R,) float, the largest intersection over union of each box with any target.
        targets: (R,) int64, the target with that, the first of several.
        best: (R,) bool, whether a target overlaps no other box more than this one.
    """

    overlaps: Tensor
    targets: Tensor
    best: Tensor


@torch.no_grad()
def match_boxes(boxes: Tensor, targets: Tensor) -> BoxMatches:
    """Matches boxes to targets as anchors are to ground truth (Faster R-CNN, section 3.1.2); every overlap has the
    bits of detectron2's ``pairwise_iou``.

    Args:
        boxes: (R, 4) x0, y0, x1, y1.
        targets: (G, 4), the same; at least one.

    Raises:
        ValueError: a wrong shape, or no targets.
        TypeError: the two are not of one floating dtype.
    """
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (R, 4), got {tuple(boxes.shape)}")
    if targets.dim() != 2 or targets.shape[1] != 4 or len(targets) == 0:
        raise ValueError(f"targets must have shape (G, 4) with G > 0, got {tuple(targets.shape)}")
    if not boxes.is_floating_point() or boxes.dtype != targets.dtype:
        raise TypeError(
            f"boxes and targets must be of one floating dtype, got {boxes.dtype} and {targets.dtype}"
        )
    if _is_compiled_for(boxes, targets):
        return BoxMatches(*torch.ops.mrcnn_ext.match_boxes(boxes, targets))
    step = max(_AT_ONCE // len(targets), 256)
    blocks = [slice(begin, begin + step) for begin in range(0, len(boxes), step)]
    overlaps = boxes.new_empty(len(boxes))
    indices = torch.empty(len(boxes), dtype=torch.int64, device=boxes.device)
    best = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if not blocks:
        return BoxMatches(overlaps, indices, best)
    areas, target_areas = _areas(boxes), _areas(targets)
    largest = boxes.new_empty(len(blocks), len(targets))
    for number, some in enumerate(blocks):
        block = _overlaps(targets, target_areas, boxes[some], areas[some])
        torch.max(block, 0, out=(overlaps[some], indices[some]))
        torch.amax(block, 1, out=largest[number])
    # Computed again where they are: few blocks have a target's largest overlap.
    is_largest = largest == largest.amax(0)
    for number in is_largest.any(1).nonzero()[:, 0].tolist():
        of, some = is_largest[number], blocks[number]
        block = _overlaps(targets[of], target_areas[of], boxes[some], areas[some])
        best[some] = (block == largest[number, of][:, None]).any(0)
    return BoxMatches(overlaps, indices, best)


def _is_compiled_for(boxes, targets):
    if not (_extension.is_available() and boxes.device.type == "cpu" and len(boxes)):
        return False
    if boxes.dtype not in (torch.float32, torch.float64):
        return False
    return all(bool(some.abs().amax() < _LARGEST) for some in (boxes, targets))  # which no NaN is


def _areas(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _overlaps(targets, target_areas, boxes, areas):
    """(G, R)."""
    x0, y0, x1, y1 = targets[:, :, None].unbind(1)
    width = torch.minimum(x1, boxes[:, 2]).sub_(torch.maximum(x0, boxes[:, 0])).clamp_(min=0)
    height = torch.minimum(y1, boxes[:, 3]).sub_(torch.maximum(y0, boxes[:, 1])).clamp_(min=0)
    shared = width.mul_(height)
    union = (target_areas[:, None] + areas).sub_(shared)
    return torch.where(shared > 0, shared / union, 0.0)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::match_boxes")
    def _fake(boxes, targets):
        count = boxes.shape[0]
        indices = boxes.new_empty((count,), dtype=torch.int64)
        return boxes.new_empty((count,)), indices, boxes.new_empty((count,), dtype=torch.bool)
