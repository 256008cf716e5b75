"""Non-maximum suppression whose operations have shapes that depend on no value, so that nothing waits for a GPU."""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Suppression", "suppress"]

# Rounds of `suppress`; a box is decided after as many as the longest chain of boxes that suppress each other, ending
# with it. Chains of detections and proposals have about ten.
ROUNDS = 32
# Pairs of boxes that are looked at together: a dozen bytes each.
_PAIRS = 2**26


class Suppression(NamedTuple):
    """What `suppress` found.

    Attributes:
        keep: (G, n) bool, the boxes that stay.
        settled: () bool, whether every box was decided; else ``keep`` is not to be used.
    """

    keep: Tensor
    settled: Tensor


@torch.no_grad()
def suppress(
    boxes: Tensor,
    valid: Tensor,
    threshold: float,
    classes: Tensor | None = None,
    rounds: int = ROUNDS,
) -> Suppression:
    """Greedy non-maximum suppression of several groups of boxes at once, as ``torchvision.ops.nms`` of each.

    A box stays if no better box that stays overlaps it by more than the threshold. Starting with all boxes, each round
    asks this of all of them at once, going by those that stayed in the round before. Once a round changes nothing the
    answer is that of the greedy algorithm, which decides one box after the other. No operation has a result of a shape
    that depends on the boxes, no result is looked at.

    Args:
        boxes: (G, n, 4) floating point, taken to float32 or wider; x0, y0, x1, y1; of each group the best first.
        valid: (G, n) bool, which boxes there are; the others neither stay nor suppress any.
        threshold: the highest intersection over union of two boxes that stay.
        classes: (G, n) of any dtype; only boxes of one class suppress each other. None for one class.
        rounds: at most so many.

    Returns:
        The boxes that stay, and whether the rounds sufficed.
    """
    if boxes.numel() == 0:
        return Suppression(valid, torch.ones((), dtype=torch.bool, device=boxes.device))
    boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
    groups = max(1, _PAIRS // boxes.shape[1] ** 2)
    parts = (
        _suppress(some, there, threshold, of, rounds)
        for some, there, of in zip(
            boxes.split(groups),
            valid.split(groups),
            itertools.repeat(None) if classes is None else classes.split(groups),
            strict=False,
        )
    )
    keep, settled = zip(*parts, strict=True)
    return Suppression(torch.cat(keep), torch.stack(settled).all())


def _suppress(boxes, valid, threshold, classes, rounds):
    count = boxes.shape[1]
    overlapping = _overlaps_above(boxes, threshold)
    if classes is not None:
        overlapping &= classes[:, :, None] == classes[:, None, :]
    better = torch.ones(count, count, dtype=torch.bool, device=boxes.device).triu(diagonal=1)
    # suppresses[g, i, j]: box i is better than box j and overlaps it. The products count the boxes that do.
    dtype = torch.float32 if boxes.device.type == "cpu" else torch.float16
    suppresses = (overlapping & better).to(dtype)
    keep = before = valid
    for _ in range(min(rounds, count)):
        before, keep = keep, valid & (torch.bmm(keep[:, None].to(dtype), suppresses)[:, 0] == 0)
    # With as many rounds as boxes every chain has ended.
    settled = (keep == before).all() if rounds < count else torch.ones_like(valid[0, 0])
    return keep, settled


def _overlaps_above(boxes, threshold):
    """(G, n, n) bool, in the arithmetic of torchvision's nms on the CPU."""
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    sides = (high - low).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    union = areas[:, :, None] + areas[:, None, :] - shared
    return shared / union > (_largest_float32_up_to(threshold) if boxes.dtype == torch.float32 else threshold)


def _largest_float32_up_to(value: float) -> float:
    """What a float32 is above if and only if it is above ``value``, which torchvision compares as a double."""
    rounded = np.float32(value)
    if rounded > value:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)
