"""COCO annotation files as training data for torchvision's detectors."""

import contextlib
import io
import os

import torch
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.transforms.v2.functional import pil_to_tensor

__all__ = ["CocoInstances"]


class CocoInstances(CocoDetection):
    """Images with boxes, labels, masks and keypoints, as torchvision's detectors take them.

    Item i is an image (3, H, W) float32 in [0, 1], RGB, and a dict: "boxes" (L, 4) float32 corners in pixels,
    "labels" (L,) int64 from 1 in the order of the category ids, "masks" (L, H, W) uint8, "image_id", and, if
    a category has keypoints, "keypoints" (L, K, 3) float32 x, y, visibility (none visible for an object of
    another category). Crowds are left out. Keypoints are in continuous coordinates: half a pixel more than
    in the file.

    Args:
        root: folder that the file names of the images are relative to.
        annotation_file: of COCO's format.
        flip: mirror every other image at random (left and right keypoints change places).

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: categories with different keypoints, or an object with another number of them.
    """

    def __init__(self, root: str, annotation_file: str, flip: bool = False):
        if not os.path.isfile(annotation_file):
            raise FileNotFoundError(f"no annotation file {annotation_file}: write the dataset first")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            super().__init__(root, annotation_file)
        self.flip = flip
        self.category_ids = sorted(self.coco.cats)
        names = {tuple(category.get("keypoints", ())) for category in self.coco.cats.values()} - {()}
        if len(names) > 1:
            raise ValueError(f"{annotation_file}: categories have different keypoints")
        self.keypoint_names = names.pop() if names else ()
        self._mirrored = [self.keypoint_names.index(_other_side(name)) for name in self.keypoint_names]

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture, annotations = super().__getitem__(index)
        image = pil_to_tensor(picture).float() / 255
        height, width = image.shape[-2:]
        annotations = [a for a in annotations if not a.get("iscrowd") and min(a["bbox"][2:]) > 0]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = [torch.from_numpy(self.coco.annToMask(a)) for a in annotations]
        target = {
            "boxes": boxes,
            "labels": torch.tensor(
                [self.category_ids.index(a["category_id"]) + 1 for a in annotations], dtype=torch.int64
            ),
            "masks": torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8),
            "image_id": torch.tensor(self.ids[index]),
        }
        if self.keypoint_names:
            target["keypoints"] = self._keypoints(annotations)
        if self.flip and torch.rand(()) < 0.5:
            image, target = self._mirror(image, target)
        return image, target

    def _keypoints(self, annotations: list[dict]) -> Tensor:
        count = len(self.keypoint_names)
        keypoints = torch.zeros(len(annotations), count, 3)
        for row, annotation in zip(keypoints, annotations, strict=True):
            values = annotation.get("keypoints", [0] * (3 * count))
            if len(values) != 3 * count:
                raise ValueError(
                    f"annotation {annotation['id']} has {len(values)} numbers in keypoints, not 3 x {count}"
                )
            row[:] = torch.tensor(values, dtype=torch.float32).reshape(count, 3)
        keypoints[..., :2] += 0.5 * (keypoints[..., 2:] > 0)
        return keypoints

    def _mirror(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        width = image.shape[-1]
        x0, y0, x1, y1 = target["boxes"].unbind(1)
        target["boxes"] = torch.stack([width - x1, y0, width - x0, y1], dim=1)
        target["masks"] = target["masks"].flip(-1)
        if "keypoints" in target:
            keypoints = target["keypoints"][:, self._mirrored]
            keypoints[..., 0] = torch.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
            target["keypoints"] = keypoints
        return image.flip(-1), target


def _other_side(name: str) -> str:
    return name.replace("left", "right") if "left" in name else name.replace("right", "left")
