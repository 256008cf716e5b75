"""Places for labels: beside their objects where there is room, and never one over another."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

__all__ = ["Place", "Placer"]

_GRID = 400  # cells of the longer side in which what is covered is counted
_RINGS = 4  # distances from the box at which a label is tried, in its heights
_AWAY = 0.12  # cost of a ring; covering an object wholly costs 1
_LEAST = 0.02  # cost of each further choice within a ring
_HELD = 0.25  # what the choice of the frame before costs less
_INSIDE = 0.3  # cost of a place within the object's own box


@dataclass(frozen=True)
class Place:
    """x0, y0, x1, y1 of a label, and whether it is so far off that a line must lead to its object."""

    rect: tuple[float, float, float, float]
    needs_line: bool


class Placer:
    """Finds places for the labels of a picture, and in a video keeps them where they were while it is as good."""

    def __init__(self):
        self._held: dict[Hashable, int] = {}

    def place(
        self,
        boxes: Sequence[Sequence[float]],
        sizes: Sequence[tuple[float, float]],
        covered: np.ndarray,
        gap: float,
        keys: Sequence[Hashable | None],
    ) -> list[Place | None]:
        """
        Args:
            boxes: x0, y0, x1, y1 of the objects, the most important first.
            sizes: width and height of each one's label.
            covered: (H, W) bool, pixels that objects are drawn on.
            gap: pixels between a label and what is beside it.
            keys: what tells that an object is one of the frame before; None for none.

        Returns:
            A place for each; None where all would lie over other labels or beyond the picture.
        """
        height, width = covered.shape
        density = _Density(covered)
        taken: list[tuple[float, float, float, float]] = []
        places: list[Place | None] = []
        held: dict[Hashable, int] = {}
        for box, size, key in zip(boxes, sizes, keys, strict=True):
            best = None
            for number, (rect, ring, cost) in enumerate(_candidates(box, size, gap)):
                inside = rect[0] >= 0 and rect[1] >= 0 and rect[2] <= width and rect[3] <= height
                if not inside or any(_meet(rect, other, gap / 2) for other in taken):
                    continue
                cost += density.share(rect)
                if key is not None and self._held.get(key) == number:
                    cost -= _HELD
                if best is None or cost < best[0]:
                    best = (cost, number, rect, ring)
            if best is None:
                places.append(None)
                continue
            _, number, rect, ring = best
            taken.append(rect)
            places.append(Place(rect, needs_line=ring > 0))
            if key is not None:
                held[key] = number
        self._held = held
        return places


def _candidates(box, size, gap):
    """(rectangle, ring, cost) of the places that are tried; the ring is 0 beside the box."""
    x0, y0, x1, y1 = box
    w, h = size
    middle = (x0 + x1 - w) / 2
    for ring in range(_RINGS):
        far = gap + ring * (h + gap)
        corners = (
            *((x0, y0 - h - far), (x1 - w, y0 - h - far), (middle, y0 - h - far)),
            *((x0, y1 + far), (x1 - w, y1 + far), (middle, y1 + far)),
            *((x1 + far, y0), (x0 - w - far, y0), (x1 + far, y1 - h), (x0 - w - far, y1 - h)),
        )
        for number, (x, y) in enumerate(corners):
            yield (x, y, x + w, y + h), ring, ring * _AWAY + number * _LEAST
    for number, (x, y) in enumerate(((x0, y0), (x1 - w, y0), (x0, y1 - h), (x1 - w, y1 - h), (middle, y0))):
        # Boxes that reach beyond the picture have their corners in it.
        yield (x, y, x + w, y + h), 0, _INSIDE + number * _LEAST


def _meet(a, b, gap):
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


class _Density:
    """How much of a rectangle is covered, by sums over a coarse grid."""

    def __init__(self, covered: np.ndarray):
        height, width = covered.shape
        self._scale = min(1.0, _GRID / max(height, width))
        size = (max(1, round(width * self._scale)), max(1, round(height * self._scale)))
        grid = cv2.resize(covered.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        self._sums = cv2.integral(grid)

    def share(self, rect) -> float:
        height, width = (side - 1 for side in self._sums.shape)
        x0, y0, x1, y1 = (side * self._scale for side in rect)
        x0, y0 = max(0, int(x0)), max(0, int(y0))
        x1, y1 = min(width, max(x0 + 1, round(x1))), min(height, max(y0 + 1, round(y1)))
        s = self._sums
        total = s[y1, x1] - s[y0, x1] - s[y1, x0] + s[y0, x0]
        return float(total / max(1, (x1 - x0) * (y1 - y0)))
