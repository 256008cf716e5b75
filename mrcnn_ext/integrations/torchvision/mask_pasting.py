"""Masks of torchvision's detectors pasted into their image, touching no more of it than the boxes cover."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

from ...layers import LazyMasks
from ...ops.mask_pasting import zeros_on_demand

__all__ = ["lazy_masks", "paste_masks"]


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """torchvision's ``paste_masks_in_image``, bit for bit.

    Args:
        masks: (R, 1, m, m) floating point, probabilities within the boxes.
        boxes: (R, 4) x0, y0, x1, y1 in pixels of the image.
        image_size: height and width of the image in pixels.

    Returns:
        (R, 1, height, width) probabilities, in the dtype of the masks.
    """
    height, width = image_size
    masks, scale = expand_masks(masks, padding=1)
    boxes = expand_boxes(boxes, scale).to(torch.int64).tolist()
    pasted = zeros_on_demand((len(masks), 1, height, width), masks.dtype, masks.device)
    for mask, (left, top, right, bottom), image in zip(masks[:, 0], boxes, pasted[:, 0], strict=True):
        size = (max(bottom - top + 1, 1), max(right - left + 1, 1))
        x0, x1 = max(left, 0), min(right + 1, width)
        y0, y1 = max(top, 0), min(bottom + 1, height)
        if x0 < x1 and y0 < y1:
            resized = F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
            image[y0:y1, x0:x1] = resized[y0 - top : y1 - top, x0 - left : x1 - left]
    return pasted


def lazy_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> LazyMasks:
    """What `paste_masks` gives at 0.5, pasted when it is looked at. Arguments as there."""
    masks, scale = expand_masks(masks, padding=1)
    boxes = expand_boxes(boxes, scale).to(torch.int64)
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2]) + 1  # the last pixel is theirs
    return LazyMasks(masks, boxes.to(masks.dtype), image_size)
