"""Which object a point belongs to, and shapes as polygons: what the readers of labelling tools share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pycocotools.mask as mask_util

from .coco_writer import FoundObject

__all__ = ["ellipse", "object_of_point", "rotated"]

_CORNERS = 64  # of the polygon that a circle becomes


def object_of_point(name: str, place: Sequence[float], group, objects: Sequence[FoundObject], where: str):
    """The object of a point's group, or, without a group, the only one whose box it lies in.

    Args:
        name: the point's, for messages.
        place: x, y in pixels.
        group: number of its group; None without.
        objects: of the image, with their groups as ``extra["group_id"]``.
        where: the file, for messages.

    Raises:
        ValueError: there is none, or several.
    """
    if group is not None:
        candidates = [one for one in objects if one.extra["group_id"] == group]
    else:
        candidates = [one for one in objects if _holds(one, *place)]
    if len(candidates) != 1:
        how = f"its group {group}" if group is not None else "a box that it lies in"
        raise ValueError(
            f"{where}: the point {name!r} must belong to one object, by {how}, and there are "
            f"{len(candidates)}: give it and its object one group_id"
        )
    return candidates[0]


def _holds(one: FoundObject, x: float, y: float) -> bool:
    if one.bbox is not None:
        x0, y0, w, h = one.bbox
    elif isinstance(one.segmentation, dict):
        x0, y0, w, h = mask_util.toBbox(one.segmentation)
    else:
        assert one.segmentation is not None  # the readers give every object a box, a mask or polygons
        xs = [v for polygon in one.segmentation for v in polygon[0::2]]
        ys = [v for polygon in one.segmentation for v in polygon[1::2]]
        x0, y0, w, h = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return x0 <= x <= x0 + w and y0 <= y <= y0 + h


def ellipse(x: float, y: float, rx: float, ry: float, rotation: float = 0.0) -> list[float]:
    """An ellipse as a polygon [x, y, ...], turned by degrees."""
    angles = [2 * math.pi * k / _CORNERS for k in range(_CORNERS)]
    polygon = [v for a in angles for v in (x + rx * math.cos(a), y + ry * math.sin(a))]
    return rotated(polygon, x, y, rotation)


def rotated(polygon: Sequence[float], x: float, y: float, degrees: float) -> list[float]:
    """A polygon [x, y, ...] turned about (x, y), clockwise as it is seen."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = zip(polygon[0::2], polygon[1::2], strict=True)
    return [
        v for u, w in points for v in (x + cos * (u - x) - sin * (w - y), y + sin * (u - x) + cos * (w - y))
    ]
