"""Sizes and places of a dataset's boxes, and how well anchors fit them. Runs without detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["BoxStatistics", "anchor_overlaps", "box_statistics", "common_ratios"]

_MOST_BOXES = 4000  # more change the third digit


@dataclass(frozen=True)
class BoxStatistics:
    """Of the images of a dataset that training sees.

    Attributes:
        num_images: how many there are.
        sizes: (N, 2) height and width in pixels of the image of each of N boxes.
        boxes: (N, 4) x0, y0, width, height in pixels; crowds and empty boxes are left out. Of large datasets N are
            evenly spaced among them.
        num_boxes: how many there are in all.
        most_per_image: boxes of the image that has most.
    """

    num_images: int
    sizes: np.ndarray
    boxes: np.ndarray
    num_boxes: int
    most_per_image: int

    def scaled(self, scales: np.ndarray) -> np.ndarray:
        """The boxes in images that are resized by (N,) factors."""
        return self.boxes * scales[:, None]


def box_statistics(
    records: Sequence[dict], to_xywh, with_empty: bool = False, max_boxes: int = _MOST_BOXES
) -> BoxStatistics:
    """
    Args:
        records: of detectron2's standard format.
        to_xywh: from an annotation to its [x0, y0, width, height].
        with_empty: whether training sees images without objects too.
        max_boxes: to keep at most.
    """
    num_images, most = 0, 0
    sizes, boxes = [], []
    for record in records:
        own = [to_xywh(a) for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        own = [box for box in own if box[2] > 0 and box[3] > 0]
        num_images += bool(own) or with_empty
        most = max(most, len(own))
        boxes += own
        sizes += [(record["height"], record["width"])] * len(own)
    keep = np.unique(np.linspace(0, max(len(boxes) - 1, 0), min(len(boxes), max_boxes)).round().astype(int))
    return BoxStatistics(
        num_images,
        np.array(sizes, float).reshape(-1, 2)[keep],
        np.array(boxes, float).reshape(-1, 4)[keep],
        len(boxes),
        most,
    )


def anchor_overlaps(
    boxes: np.ndarray,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    strides: Sequence[int],
) -> np.ndarray:
    """The IoU of each box with the best of the anchors on their grid, as the RPN matches them.

    An anchor's centre is at a multiple of the stride, so that the best one of a shape is that of the nearest place.

    Args:
        boxes: (N, 4) x0, y0, width, height in pixels of the network's input.
        sizes: of each feature map, square roots of the anchors' areas in pixels.
        ratios: of each feature map, or one list for all, heights over widths.
        strides: of each feature map.

    Returns:
        (N,) IoU from 0 to 1.
    """
    x0, y0, w, h = boxes.T
    best = np.zeros(len(boxes))
    for level, stride in enumerate(strides):
        centres = [(x0 + w / 2, w), (y0 + h / 2, h)]
        off_x, off_y = (centre - np.round(centre / stride) * stride for centre, _ in centres)
        for size in sizes[level % len(sizes)]:
            for ratio in ratios[level % len(ratios)]:
                width, height = size / ratio**0.5, size * ratio**0.5
                inside = _overlap(off_x, w, width) * _overlap(off_y, h, height)
                best = np.maximum(best, inside / (w * h + width * height - inside))
    return best


def _overlap(offset, one, other):
    """Of two intervals of these lengths whose centres are that far apart."""
    return np.maximum(0, np.minimum(one / 2, offset + other / 2) - np.maximum(-one / 2, offset - other / 2))


def common_ratios(boxes: np.ndarray, number: int) -> list[float]:
    """The heights over widths around which those of boxes lie: k-means of their logarithms, which ends where the
    clusters stay.

    Args:
        boxes: (N, 4) x0, y0, width, height.
        number: of clusters; as many ratios are given, rising, if the boxes have as many.
    """
    logs = np.sort(np.log(boxes[:, 3] / boxes[:, 2]))
    centres = np.quantile(logs, (np.arange(number) + 0.5) / number)
    for _ in range(100):
        nearest = np.abs(logs[:, None] - centres).argmin(1)
        moved = np.array(
            [logs[nearest == k].mean() if (nearest == k).any() else c for k, c in enumerate(centres)]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    return sorted({_rounded(v) for v in np.exp(centres)})


def _rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.2g}")
