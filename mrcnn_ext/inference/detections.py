"""Detections of one image as plain numbers, read back from COCO results: what drawings and files are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["Detection", "detections_of"]

# detectron2 and COCO count keypoints from the centre of a pixel, pictures from its corner.
_HALF = 0.5


@dataclass
class Detection:
    """One object.

    Attributes:
        category: index of its class, in the order of the categories.
        name: of the class.
        score: from 0 to 1.
        box: (4,) float64, x0, y0, x1, y1 in pixels of the image.
        mask: (h, w) bool, the part of the mask that holds its pixels, or None from a model without masks.
        corner: x and y of that part's first pixel.
        keypoints: (K, 3) float64, x, y and score, or None from a model without keypoints.
        track: number that the object has in all frames of a video, or None.
    """

    category: int
    name: str
    score: float
    box: np.ndarray
    mask: np.ndarray | None = None
    corner: tuple[int, int] = (0, 0)
    keypoints: np.ndarray | None = None
    track: int | None = None

    @property
    def area(self) -> float:
        """Pixels of the mask, or of the box where there is none."""
        if self.mask is not None:
            return float(self.mask.sum())
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


def detections_of(
    records: Sequence[dict], categories: Mapping[int, str] | None = None, min_score: float = 0.0
) -> list[Detection]:
    """
    Args:
        records: COCO results of one image.
        categories: names of the classes by category id, in the order of the classes; None where they have no names,
            and the ids are the classes' numbers.
        min_score: results below are left out.

    Returns:
        The objects, as the records are ordered.
    """
    places = {id: place for place, id in enumerate(categories or ())}
    found = []
    for record in records:
        if record["score"] < min_score:
            continue
        id = record["category_id"]
        x, y, w, h = record["bbox"]
        one = Detection(
            category=places.get(id, id),
            name=str((categories or {}).get(id, id)),
            score=record["score"],
            box=np.array([x, y, x + w, y + h], dtype=np.float64),
            track=record.get("track_id"),
        )
        if "segmentation" in record:
            one.mask, one.corner = _cropped(record["segmentation"])
        if "keypoints" in record:
            one.keypoints = np.array(record["keypoints"], dtype=np.float64).reshape(-1, 3)
            one.keypoints[:, :2] += _HALF
        found.append(one)
    return found


def _cropped(rle: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """The mask within its bounds, and where these begin."""
    x, y, w, h = (int(side) for side in mask_util.toBbox(rle))
    return mask_util.decode(rle)[y : y + h, x : x + w].astype(bool), (x, y)
