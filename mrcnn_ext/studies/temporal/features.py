"""The RoI features of the people of clips, by a frozen detector: what all heads of the study learn from."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...layers.boxes import scaled_boxes
from .people import People, noisy, read_pixels

__all__ = ["Tracks", "pooled_tracks"]

_COPY = 2**24  # added to the number of a track for each copy; mirrored ones differ by 2**20


@dataclass
class Tracks:
    """The people of clips, frame by frame. A mirrored copy of a clip, or one with other boxes, is a clip of its own.

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
        rows, tracks = defaultdict(list), self.tracks.tolist()
        for row in self.frames.argsort(stable=True).tolist():
            rows[tracks[row]].append(row)
        return list(rows.values())

    def save(self, file) -> None:
        torch.save({name: value.cpu() for name, value in vars(self).items()}, file)

    @classmethod
    def load(cls, path, device: str | torch.device = "cpu") -> Tracks:
        return cls(**torch.load(path, weights_only=True, map_location=device))


@torch.no_grad()
def pooled_tracks(
    model: nn.Module, frames: list[People], seed: int, copies: int = 1, batch: int = 64
) -> Tracks:
    """
    Args:
        model: a detector with an FPN and a keypoint head; its images are BGR and have the size of the clips' frames.
        frames: their people.
        seed: of the boxes' noise, which is the same on any device.
        copies: of all people, each with noise of its own.
        batch: frames that go through the backbone at once.

    Returns:
        On the model's device.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    parts = [_pooled(model, frames[k : k + batch], generator, copies) for k in range(0, len(frames), batch)]
    return Tracks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _pooled(
    model: nn.Module, frames: list[People], generator: torch.Generator, copies: int
) -> tuple[Tensor, ...]:
    """The fields of `Tracks` for the people of some frames."""
    heads = model.roi_heads
    pixels = [read_pixels(people.image["file_name"]) for people in frames]
    images = [
        {"image": part.flip(2) if people.mirrored else part}
        for part, people in zip(pixels, frames, strict=True)
    ]
    maps = model.backbone(model.preprocess_image(images).tensor)
    maps = [maps[name] for name in heads.keypoint_in_features]
    by_frame = [[noisy(people.boxes, generator) for _ in range(copies)] for people in frames]
    boxes = list(zip(*by_frame, strict=True))
    rois = [
        [scaled_boxes(part, heads.keypoint_box_scale).to(model.device) for part in copy] for copy in boxes
    ]
    pooled = [heads.keypoint_pooler(maps, [Boxes(part) for part in copy]) for copy in rois]
    numbers, ids = (
        torch.cat([torch.full((len(people.boxes),), people.image[key]) for people in frames])
        for key in ("frame_index", "image_id")
    )
    keypoints, tracks, annotations = (
        torch.cat([getattr(people, name) for people in frames])
        for name in ("keypoints", "tracks", "annotations")
    )
    tracks = torch.cat([tracks + copy * _COPY for copy in range(copies)])
    per_copy = [
        field.repeat(copies, *[1] * (field.dim() - 1)) for field in (keypoints, numbers, ids, annotations)
    ]
    keypoints, numbers, ids, annotations = per_copy
    everyone = torch.cat([part for copy in rois for part in copy])
    fields = torch.cat(pooled).half(), everyone, keypoints, numbers, tracks, ids, annotations
    return tuple(field.to(model.device) for field in fields)
