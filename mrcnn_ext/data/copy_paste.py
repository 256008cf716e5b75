"""Copy-paste augmentation: objects of another training image are pasted into an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

__all__ = ["CopyPasteMapper", "build_copy_paste_train_loader", "paste_objects"]


class CopyPasteMapper:
    """A mapper that pastes objects of a random other image, augmented by the same mapper, into each image (Ghiasi et
    al., Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation, CVPR 2021, section 3).

    What is random is drawn from NumPy's generator, as in detectron2's augmentations, so that trainings that are resumed
    see the same pictures.

    Args:
        mapper: detectron2's or ours, with masks as bitmaps. Crowds, which it leaves out, are never pasted.
        source: records of the images to take objects from: those of the training data.
        probability: with which an image is pasted into.
        max_objects: to paste into an image at most; 0: any number. Of N objects, 0 to N are taken at random.
        keep_masks: whether the model needs the masks.

    Raises:
        ValueError: the mapper gives no masks, or polygons, or semantic segmentations; or an argument is out of range.
    """

    def __init__(
        self,
        mapper: Callable[[dict], dict],
        source: Sequence[dict],
        probability: float = 1.0,
        max_objects: int = 0,
        keep_masks: bool = True,
    ):
        if not 0 <= probability <= 1:
            raise ValueError(
                f"INPUT.COPY_PASTE.PROBABILITY (probability) must be in [0, 1], got {probability!r}"
            )
        if max_objects < 0:
            raise ValueError(
                f"INPUT.COPY_PASTE.MAX_OBJECTS (max_objects) must be at least 0 (no limit), got {max_objects!r}"
            )
        if (
            not getattr(mapper, "use_instance_mask", True)
            or getattr(mapper, "instance_mask_format", "bitmask") != "bitmask"
        ):
            raise ValueError(
                "copy-paste needs masks as bitmaps: the mapper must have use_instance_mask=True and "
                "instance_mask_format='bitmask'"
            )
        self.mapper, self.source = mapper, source
        self.probability, self.max_objects, self.keep_masks = probability, max_objects, keep_masks

    def __call__(self, dataset_dict: dict) -> dict | None:
        sample = self.mapper(dataset_dict)
        if sample is None:
            return None
        if "sem_seg" in sample:
            raise ValueError("copy-paste does not update semantic segmentations: switch one of them off")
        if np.random.random() < self.probability:
            donor = self.mapper(self.source[np.random.randint(len(self.source))])
            if donor is not None:
                sample = paste_objects(sample, donor, self._chosen(len(donor["instances"])))
        if not self.keep_masks and sample["instances"].has("gt_masks"):
            sample["instances"].remove("gt_masks")
        return sample

    def _chosen(self, number: int) -> np.ndarray:
        count = np.random.randint(number + 1)
        if self.max_objects:
            count = min(count, self.max_objects)
        return np.random.permutation(number)[:count]


def paste_objects(sample: dict, donor: dict, chosen: Sequence[int] | np.ndarray) -> dict:
    """Pastes objects of one sample over another, at the same place from the upper left corner.

    Of what is hidden by them, masks and boxes are cut to what is left to be seen, keypoints become hidden ones (COCO's
    visibility 1), and objects of which nothing is left are dropped. Of pasted objects that reach beyond the image the
    part inside is taken.

    Args:
        sample: a mapper's, with "image" (C, H, W) and "instances", whose ``gt_masks`` are bitmaps.
        donor: another one; its image may have another size.
        chosen: which of the donor's objects.

    Returns:
        dict: ``sample`` with new "image" and "instances"; what was given is left as it is.
    """
    if len(chosen) == 0:
        return sample
    image, instances = sample["image"].clone(), sample["instances"]
    height, width = image.shape[-2:]
    pasted = _fitted(donor["instances"][torch.as_tensor(np.asarray(chosen))], height, width)
    if len(pasted) == 0:
        return sample
    over = pasted.gt_masks.tensor.any(0)
    h, w = min(height, donor["image"].shape[-2]), min(width, donor["image"].shape[-1])
    region = over[:h, :w]
    image[:, :h, :w] = torch.where(region, donor["image"][:, :h, :w], image[:, :h, :w])
    below = _uncovered(instances, over) if len(instances) else instances
    parts = [part for part in (below, pasted) if len(part)]
    return {**sample, "image": image, "instances": Instances.cat(_with_same_fields(parts))}


def _fitted(objects: Instances, height: int, width: int) -> Instances:
    """Objects in an image of this size: cut off at its border, without those that lie outside."""
    masks = objects.gt_masks.tensor
    placed = masks.new_zeros(len(masks), height, width)
    h, w = min(height, masks.shape[1]), min(width, masks.shape[2])
    placed[:, :h, :w] = masks[:, :h, :w]
    fitted = Instances((height, width), **objects.get_fields())
    if fitted.has("gt_keypoints"):
        keypoints = fitted.gt_keypoints.tensor.clone()
        outside = (keypoints[..., 0] >= width) | (keypoints[..., 1] >= height)
        keypoints[outside] = 0
        fitted.gt_keypoints = Keypoints(keypoints)
    return _with_masks(fitted, placed)


def _uncovered(objects: Instances, over: torch.Tensor) -> Instances:
    """What is left of objects under the (H, W) mask of what lies over them."""
    left = Instances(objects.image_size, **objects.get_fields())
    if left.has("gt_keypoints"):
        keypoints = left.gt_keypoints.tensor.clone()
        x, y = (keypoints[..., k].long().clamp(0, over.shape[1 - k] - 1) for k in (0, 1))
        hidden = over[y, x] & (keypoints[..., 2] > 1)
        keypoints[..., 2][hidden] = 1
        left.gt_keypoints = Keypoints(keypoints)
    return _with_masks(left, objects.gt_masks.tensor & ~over)


def _with_masks(objects: Instances, masks: torch.Tensor) -> Instances:
    """Objects with other masks, and the boxes of those that have changed; without those that are empty now."""
    before = objects.gt_masks.tensor.flatten(1).sum(1)
    area = masks.flatten(1).sum(1)
    boxes = objects.gt_boxes.tensor.clone()
    changed = area < before
    objects.gt_masks = BitMasks(masks)
    boxes[changed] = objects.gt_masks[changed].get_bounding_boxes().tensor.to(boxes)
    objects.gt_boxes = Boxes(boxes)
    return objects[area > 0]


def _with_same_fields(parts: list[Instances]) -> list[Instances]:
    """Datasets with and without keypoints may stand side by side: objects without have none visible."""
    shapes = [part.gt_keypoints.tensor.shape[1:] for part in parts if part.has("gt_keypoints")]
    for part in parts:
        if shapes and not part.has("gt_keypoints"):
            part.gt_keypoints = Keypoints(torch.zeros(len(part), *shapes[0]))
    return parts


def build_copy_paste_train_loader(
    dataset,
    *,
    mapper: Callable,
    probability: float = 1.0,
    max_objects: int = 0,
    keep_masks: bool = True,
    **options,
):
    """detectron2's ``build_detection_train_loader`` with a `CopyPasteMapper`, for LazyConfigs: ::

        dataloader.train._target_ = build_copy_paste_train_loader
        dataloader.train.mapper.update(use_instance_mask=True, instance_mask_format="bitmask")

    Args:
        dataset: records of images.
        mapper: for single images.
        probability, max_objects, keep_masks: of `CopyPasteMapper`.
        **options: of ``build_detection_train_loader``.
    """
    # Serialized once, for the loader and for the mapper.
    shared = DatasetFromList(dataset, copy=False) if isinstance(dataset, list) else dataset
    mapper = CopyPasteMapper(mapper, shared, probability, max_objects, keep_masks)
    return build_detection_train_loader(shared, mapper=mapper, **options)
