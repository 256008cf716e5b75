"""The RoI features of the people of clips, by a frozen detector: what all heads of the study learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode
from torch import Tensor, nn

from ...data.loading import load_dataset
from ...layers.boxes import scaled_boxes

__all__ = ["Tracks", "pooled_tracks"]

_SHIFT, _STRETCH = (
    0.05,
    0.08,
)  # standard deviations of a detector's noise, of a box's sides and of their logarithms


@dataclass
class Tracks:
    """The people of clips, frame by frame. A mirrored copy of a clip is a clip of its own.

    Attributes:
        features: (N, C, P, P) float16, pooled from boxes with a detector's noise.
        boxes: (N, 4) these RoIs, in pixels.
        keypoints: (N, K, 3) in pixels and COCO's visibility, mirrored where the clip is.
        frames: (N,) place in the clip, from 0.
        tracks: (N,) who it is.
        images, annotations: (N,) COCO's ids.
    """

    features: Tensor
    boxes: Tensor
    keypoints: Tensor
    frames: Tensor
    tracks: Tensor
    images: Tensor
    annotations: Tensor

    def __len__(self) -> int:
        return len(self.frames)

    def by_track(self) -> list[list[int]]:
        """Rows of each person, in the order of the frames."""
        rows = defaultdict(list)
        for row in self.frames.argsort(stable=True).tolist():
            rows[int(self.tracks[row])].append(row)
        return list(rows.values())

    def save(self, path) -> None:
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path) -> Tracks:
        return cls(**torch.load(path, weights_only=True))


@torch.no_grad()
def pooled_tracks(
    model: nn.Module, dataset: str, flip_map: list[tuple[str, str]] | None, names: list[str], seed: int
) -> Tracks:
    """
    Args:
        model: a detector with an FPN and a keypoint head; its images are BGR and have the size of the clips' frames.
        dataset: registered clips of people.
        flip_map: of the keypoints; None leaves mirrored copies out.
        names: of the keypoints.
        seed: of the boxes' noise.
    """
    model.eval()
    swap = _swapped(names, flip_map or [])
    rng = np.random.default_rng(seed)
    parts = [
        _of_image(model, image, mirrored, swap, rng)
        for mirrored in ((False, True) if flip_map is not None else (False,))
        for image in _with_people(dataset)
    ]
    return Tracks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _with_people(dataset: str) -> Iterator[dict]:
    for image in load_dataset(dataset):
        if any(max(a["keypoints"][2::3]) > 0 for a in image["annotations"]):
            yield image


def _swapped(names, flip_map) -> list[int]:
    pairs = {**dict(flip_map), **{b: a for a, b in flip_map}}
    return [names.index(pairs.get(name, name)) for name in names]


def _of_image(model, image, mirrored, swap, rng):
    pixels = cv2.imread(image["file_name"])
    people = [a for a in image["annotations"] if max(a["keypoints"][2::3]) > 0]
    boxes = torch.tensor([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in people])
    points = torch.tensor([a["keypoints"] for a in people], dtype=torch.float32).view(len(people), -1, 3)
    width = pixels.shape[1]
    if mirrored:
        pixels = pixels[:, ::-1]
        boxes = boxes[:, [2, 1, 0, 3]]
        boxes[:, 0::2] = width - boxes[:, 0::2]
        points = points[:, swap]
        points[..., 0] = width - points[..., 0]
    boxes = _noisy(boxes.float(), rng)
    inputs = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    maps = model.backbone(model.preprocess_image([{"image": inputs}]).tensor)
    heads = model.roi_heads
    rois = scaled_boxes(boxes, heads.keypoint_box_scale)
    pooled = heads.keypoint_pooler([maps[name] for name in heads.keypoint_in_features], [Boxes(rois)])
    copy = int(mirrored) * 2**20
    return (
        pooled.half(),
        rois,
        points,
        torch.full((len(people),), image["frame_index"]),
        torch.tensor([a["track_id"] + copy for a in people]),
        torch.full((len(people),), image["image_id"]),
        torch.tensor([a["id"] for a in people]),
    )


def _noisy(boxes: Tensor, rng) -> Tensor:
    """As a detector would have found them: moved and stretched a little, in each frame anew."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    noise = torch.as_tensor(rng.normal(size=(2, *sides.shape)), dtype=torch.float32)
    centres = centres + _SHIFT * noise[0] * sides
    sides = sides * (_STRETCH * noise[1]).exp()
    return torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
