"""The annotated people of clips, frame by frame, and their boxes as a detector would have found them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import BoxMode
from torch import Tensor

from ...data.loading import load_dataset

__all__ = ["People", "noisy", "people_of", "read_pixels"]

# Standard deviations of a detector's noise, of a box's sides and of their logarithms.
_SHIFT, _STRETCH = 0.05, 0.08


@dataclass
class People:
    """Those of one frame, of which there may be a mirrored copy.

    Attributes:
        image: its record in the dataset.
        mirrored: whether boxes and keypoints, and the pixels that belong to them, are.
        boxes: (R, 4) annotated, in pixels.
        keypoints: (R, K, 3) in pixels and COCO's visibility.
        tracks: (R,) who it is; another number in the mirrored copy.
        annotations: (R,) COCO's ids.
    """

    image: dict
    mirrored: bool
    boxes: Tensor
    keypoints: Tensor
    tracks: Tensor
    annotations: Tensor


def people_of(dataset: str, flip_map: list[tuple[str, str]] | None, names: list[str]) -> list[People]:
    """The people with keypoints of all frames that show some, then of their mirrored copies.

    Args:
        dataset: registered clips of people.
        flip_map: of the keypoints; None leaves mirrored copies out.
        names: of the keypoints.
    """
    images = load_dataset(dataset)
    found = [_people_of(image, None) for image in images]
    if flip_map is not None:
        pairs = {**dict(flip_map), **{b: a for a, b in flip_map}}
        swap = [names.index(pairs.get(name, name)) for name in names]
        found += [_people_of(image, swap) for image in images]
    return [people for people in found if people is not None]


def _people_of(image: dict, swap: list[int] | None) -> People | None:
    people = [a for a in image["annotations"] if max(a["keypoints"][2::3]) > 0]
    if not people:
        return None
    boxes = torch.tensor([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in people])
    points = torch.tensor([a["keypoints"] for a in people], dtype=torch.float32).view(len(people), -1, 3)
    tracks = torch.tensor([a["track_id"] for a in people])
    if swap is not None:
        boxes = boxes[:, [2, 1, 0, 3]]
        boxes[:, 0::2] = image["width"] - boxes[:, 0::2]
        points = points[:, swap]
        points[..., 0] = image["width"] - points[..., 0]
        tracks = tracks + 2**20
    annotations = torch.tensor([a["id"] for a in people])
    return People(image, swap is not None, boxes.float(), points, tracks, annotations)


def noisy(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Boxes (R, 4) as a detector would have found them: moved and stretched a little."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    noise = torch.randn(2, *sides.shape, generator=generator)
    centres = centres + _SHIFT * noise[0] * sides
    sides = sides * (_STRETCH * noise[1]).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)


def read_pixels(path: str) -> Tensor:
    """(3, H, W) uint8, blue, green and red."""
    return torch.as_tensor(np.ascontiguousarray(cv2.imread(path).transpose(2, 0, 1)))
