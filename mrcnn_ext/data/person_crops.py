"""People cut out of a dataset's images, one an image, for networks that see one person."""

from __future__ import annotations

import copy

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from .loading import get_detection_dataset_dicts
from .mapper import DatasetMapper

__all__ = ["CropToBox", "PersonCropMapper", "get_person_crops", "person_crops"]


def person_crops(dicts: list[dict], min_keypoints: int = 1) -> list[dict]:
    """A record for each person of a dataset.

    Args:
        dicts: of detectron2's standard format.
        min_keypoints: labelled keypoints of a person at least.

    Returns:
        The records of the images with one annotation each, and ``person_box`` (x0, y0, x1, y1 in pixels); an image of
        several people is there several times, with the same ``image_id``. Crowds are left out.
    """
    result = []
    for record in dicts:
        for annotation in record.get("annotations", ()):
            keypoints = annotation.get("keypoints", ())
            labelled = int((np.asarray(keypoints).reshape(-1, 3)[:, 2] > 0).sum())
            if annotation.get("iscrowd", 0) or labelled < min_keypoints:
                continue
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            result.append({**record, "annotations": [annotation], "person_box": [float(v) for v in box]})
    if not result:
        raise ValueError(
            f"no person with {min_keypoints} labelled keypoints or more is in the data, of which INPUT.PERSON_CROPS "
            "makes its images"
        )
    return result


def get_person_crops(names, filter_empty: bool = True, min_keypoints: int = 1) -> list[dict]:
    """`person_crops` of registered datasets; arguments as of `get_detection_dataset_dicts`."""
    return person_crops(get_detection_dataset_dicts(names, filter_empty, min_keypoints), min_keypoints)


class CropToBox(T.Augmentation):
    """Cuts the box out of an image, with some of its surroundings, and resizes that to one size. What lies beyond the
    image is black. The box keeps its aspect ratio: its shorter side, as compared to the crop's, gets more surroundings.
    An image without a box is resized to fit.

    Args:
        size: (height, width) of the crop.
        scale: sides of what is cut out over those of the box, so that limbs that reach out of it are seen.
        jitter: in training; the scale is multiplied by 1 - jitter to 1 + jitter, and the centre moved by up to so much
            of half of the box.
    """

    input_args = ("image", "boxes")

    def __init__(self, size: tuple[int, int], scale: float = 1.25, jitter: float = 0.0):
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"INPUT.PERSON_CROPS.SIZE must be (height, width) in pixels, got {list(size)}")
        if scale <= 0 or not 0 <= jitter < 1:
            raise ValueError(
                "INPUT.PERSON_CROPS: SCALE must be above 0 and JITTER from 0 to below 1, got "
                f"{scale} and {jitter}"
            )
        self.size = (int(size[0]), int(size[1]))
        self.scale, self.jitter = float(scale), float(jitter)

    def get_transform(self, image, boxes) -> T.Transform:
        height, width = self.size
        if boxes is None:
            return _fitting(image.shape[0], image.shape[1], height, width)
        x0, y0, x1, y1 = (float(v) for v in boxes[0])
        half = np.array([max(x1 - x0, (y1 - y0) * width / height), 0.0]) / 2
        half[1] = half[0] * height / width
        centre = np.array([x0 + x1, y0 + y1]) / 2
        scale = self.scale
        if self.jitter:
            scale *= self._rand_range(1 - self.jitter, 1 + self.jitter)
            move = [self._rand_range(-self.jitter, self.jitter) for _ in range(2)]
            centre = centre + np.array(move) * np.array([x1 - x0, y1 - y0]) / 2
        half = np.maximum(half * scale, 1.0)
        region = (*(centre - half), *(centre + half))
        return T.ExtentTransform(tuple(float(v) for v in region), self.size)

    def __repr__(self):
        return f"CropToBox(size={self.size}, scale={self.scale}, jitter={self.jitter})"


def _fitting(height, width, most_height, most_width) -> T.Transform:
    factor = min(most_height / height, most_width / width)
    return T.ResizeTransform(height, width, max(1, round(height * factor)), max(1, round(width * factor)))


class PersonCropMapper(DatasetMapper):
    """From a record of `person_crops` to the input of `mrcnn_ext.modeling.UniPose`: crop, ground truth, and where the
    crop lies in the image. Its arguments are those of detectron2's DatasetMapper; the first augmentation is a
    `CropToBox`.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True):
        arguments = super().from_config(cfg, is_train)
        crops = cfg.INPUT.PERSON_CROPS
        augmentations = [CropToBox(tuple(crops.SIZE), crops.SCALE, crops.JITTER if is_train else 0.0)]
        if is_train and cfg.INPUT.RANDOM_FLIP != "none":
            if cfg.INPUT.RANDOM_FLIP != "horizontal":
                raise ValueError(
                    "INPUT.RANDOM_FLIP of crops of people is horizontal or none, got " + cfg.INPUT.RANDOM_FLIP
                )
            augmentations.append(T.RandomFlip(horizontal=True))
        colors = (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)
        arguments["augmentations"] = augmentations + [
            a for a in arguments["augmentations"] if isinstance(a, colors)
        ]
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        given = T.AugInput(image, boxes=np.array([dataset_dict["person_box"]]))
        transforms = self.augmentations(given)
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        dataset_dict["crop_box"] = list(transforms.transforms[0].src_rect)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            return dataset_dict
        for annotation in dataset_dict["annotations"]:
            annotation.pop("segmentation", None)
        self._transform_annotations(dataset_dict, transforms, given.image.shape[:2])
        return dataset_dict
