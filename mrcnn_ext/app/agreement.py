"""Which detections of two models are of the same objects."""

from dataclasses import dataclass

from detectron2.structures import Instances, pairwise_iou

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        both: (i, j, intersection over union of the boxes) of detections of the same class, each in one pair.
        only_first, only_second: the others' places.
    """

    both: list[tuple[int, int, float]]
    only_first: list[int]
    only_second: list[int]


def agreement(first: Instances, second: Instances, min_iou: float = 0.5) -> Agreement:
    """Pairs detections whose boxes overlap most, the surest of ``first`` first.

    Args:
        first, second: of one image, with ``pred_boxes``, ``pred_classes`` and ``scores``.
        min_iou: the least overlap of a pair.
    """
    overlaps = pairwise_iou(first.pred_boxes, second.pred_boxes)
    overlaps[first.pred_classes[:, None] != second.pred_classes[None]] = -1
    pairs, taken = [], set()
    for i in first.scores.argsort(descending=True).tolist():
        for j in overlaps[i].argsort(descending=True).tolist():
            overlap = float(overlaps[i, j])
            if overlap < min_iou:
                break
            if j not in taken:
                taken.add(j)
                pairs.append((i, j, overlap))
                break
    found = {i for i, _, _ in pairs}
    return Agreement(
        pairs,
        [i for i in range(len(first)) if i not in found],
        [j for j in range(len(second)) if j not in taken],
    )
