"""COCO annotation files as training data for torchvision's detectors."""

import logging
import os

import torch
from torch import Tensor
from torchvision.datasets import CocoDetection
from torchvision.transforms.v2.functional import pil_to_tensor

from ...data.coco_file import CocoFile
from ...data.images import read_rgb
from ...data.keypoint_names import mirrored_pairs
from ...data.problems import Problems
from ...evaluation.coco_metrics import TruthCOCO

__all__ = ["CocoInstances"]


class CocoInstances(CocoDetection):
    """Images with boxes, labels, masks and keypoints, as torchvision's detectors take them.

    Annotations are mended as for detectron2 (`mrcnn_ext.data`), and images turned as their EXIF data say. Item i is
    an image (3, H, W) float32 in [0, 1], RGB, and a dict: "boxes" (L, 4) float32 corners in pixels, "labels" (L,)
    int64 from 1 in the order of the category ids, "image_id", if an object has a segmentation, "masks" (L, H, W)
    uint8 (objects that cannot be drawn are left out then), and, if one has keypoints, "keypoints" (L, K, 3) float32
    x, y, visibility (none visible for an object without). Crowds are left out. Keypoints are in continuous
    coordinates: half a pixel more than in the file.

    Args:
        root: folder that the file names of the images are relative to.
        annotation_file: of COCO's format.
        flip: mirror every other image at random (left and right keypoints change places).

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: it is no annotation file, categories have different keypoints, or an annotation cannot be used.
    """

    def __init__(self, root: str, annotation_file: str, flip: bool = False):
        if not os.path.isfile(annotation_file):
            raise FileNotFoundError(f"no annotation file {annotation_file}: write the dataset first")
        super(CocoDetection, self).__init__(root)  # CocoDetection's reads the file as it is
        problems = Problems(os.path.basename(annotation_file), annotation_file)
        file = CocoFile(annotation_file, problems)
        self.coco = TruthCOCO(file.content())
        problems.log_warnings()
        problems.raise_errors()
        if not all(isinstance(image_id, int) for image_id in self.coco.imgs):
            raise ValueError(
                f"{annotation_file}: the ids of its images must be whole numbers for torchvision"
            )
        self.ids = sorted(self.coco.imgs)
        self.flip = flip
        self.category_ids = [category["id"] for category in file.categories]
        self.keypoint_names = tuple(file.keypoint_names)
        self.num_keypoints = file.num_keypoints or 0
        self._has_masks = any("segmentation" in a for a in self.coco.anns.values())
        self._mirrored = self._mirrored_keypoints()
        if self._has_masks and not all("segmentation" in a or a["iscrowd"] for a in self.coco.anns.values()):
            logging.getLogger(__name__).warning(
                "%s: objects without a segmentation are left out", annotation_file
            )

    def _mirrored_keypoints(self) -> list[int]:
        """Where each keypoint goes in a mirrored image."""
        places = {name: place for place, name in enumerate(self.keypoint_names)}
        mirrored = list(range(self.num_keypoints))
        for left, right in mirrored_pairs(self.keypoint_names):
            mirrored[places[left]], mirrored[places[right]] = places[right], places[left]
        return mirrored

    def _load_image(self, id: int):
        return read_rgb(os.path.join(self.root, self.coco.imgs[id]["file_name"]))

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        picture, annotations = super().__getitem__(index)
        image = pil_to_tensor(picture).float() / 255
        height, width = image.shape[-2:]
        record = self.coco.imgs[self.ids[index]]
        if (height, width) != (record["height"], record["width"]):
            raise ValueError(
                f"{record['file_name']} has height {height} and width {width} (turned as its EXIF data say), the "
                f"annotations say {record['height']} and {record['width']}"
            )
        annotations = [a for a in annotations if not a["iscrowd"]]
        if self._has_masks:
            annotations = [a for a in annotations if "segmentation" in a]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {
            "boxes": boxes,
            "labels": torch.tensor(
                [self.category_ids.index(a["category_id"]) + 1 for a in annotations], dtype=torch.int64
            ),
            "image_id": torch.tensor(self.ids[index]),
        }
        if self._has_masks:
            masks = [torch.from_numpy(self.coco.annToMask(a)) for a in annotations]
            target["masks"] = (
                torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8)
            )
        if self.num_keypoints:
            target["keypoints"] = self._keypoints(annotations)
        if self.flip and torch.rand(()) < 0.5:
            image, target = self._mirror(image, target)
        return image, target

    def _keypoints(self, annotations: list[dict]) -> Tensor:
        values = [annotation["keypoints"] for annotation in annotations]
        keypoints = torch.tensor(values, dtype=torch.float32).reshape(-1, self.num_keypoints, 3)
        keypoints[..., :2] += 0.5 * (keypoints[..., 2:] > 0)
        return keypoints

    def _mirror(self, image: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        width = image.shape[-1]
        x0, y0, x1, y1 = target["boxes"].unbind(1)
        target["boxes"] = torch.stack([width - x1, y0, width - x0, y1], dim=1)
        if "masks" in target:
            target["masks"] = target["masks"].flip(-1)
        if "keypoints" in target:
            keypoints = target["keypoints"][:, self._mirrored]
            keypoints[..., 0] = torch.where(keypoints[..., 2] > 0, width - keypoints[..., 0], 0)
            target["keypoints"] = keypoints
        return image.flip(-1), target
