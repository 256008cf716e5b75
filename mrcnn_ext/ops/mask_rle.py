"""Instance masks to COCO run-length encoding at image size, without ever holding the pasted image masks."""

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

from . import _extension
from .mask_pasting import pixel_regions, sample_mask, sample_places

_STRIP = 2**20  # pixels which the path without the compiled operator pastes at a time


def masks_to_rle(
    masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5
) -> list[dict]:
    """Pastes masks into their boxes of an image and encodes them as COCO does, one by one.

    Equal to detectron2's ``paste_masks_in_image`` on the CPU followed by pycocotools' ``encode``, byte for
    byte, in the memory of the encodings. A box off the image, at which detectron2 fails, gives no pixels.
    Masks on another device are fetched from there: they are small.

    Args:
        masks: (R, 1, h, w) or (R, h, w) mask probabilities, any floating dtype; taken to float32.
        boxes: (R, 4) boxes, x0, y0, x1, y1 in pixels of the image; taken to float32.
        image_size: height and width of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask, at least 0.

    Returns:
        One COCO RLE per mask: ``{"size": [height, width], "counts": bytes}``.

    Raises:
        TypeError: masks or boxes are not floating point tensors.
        ValueError: a wrong shape, a box that is not finite, an image without pixels, a negative threshold.
    """
    masks, boxes, (height, width) = _checked(masks, boxes, image_size, threshold)
    if _extension.is_available() and _extension.backend() == "compiled":
        characters, offsets = torch.ops.mrcnn_ext.masks_to_rle(masks, boxes, height, width, threshold)
        text, offsets = characters.numpy().tobytes(), offsets.tolist()
        counts = [text[begin:end] for begin, end in zip(offsets[:-1], offsets[1:], strict=True)]
    else:
        if not _extension.is_forced():
            _extension.warn_fallback("cpu", "Mask encoding")
        instances = zip(masks, boxes, strict=True)
        counts = [_encode(mask, box, height, width, threshold) for mask, box in instances]
    return [{"size": [height, width], "counts": text} for text in counts]


def _checked(masks, boxes, image_size, threshold):
    for name, value in (("masks", masks), ("boxes", boxes)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
    shape = tuple(masks.shape)
    if masks.dim() == 4 and shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3 or 0 in masks.shape[1:]:
        raise ValueError(f"masks must have shape (R, 1, h, w) or (R, h, w) with h, w >= 1, got {shape}")
    if boxes.shape != (shape[0], 4):
        raise ValueError(f"boxes must have shape (R, 4) with masks' R = {shape[0]}, got {tuple(boxes.shape)}")
    boxes = boxes.detach().to("cpu", torch.float32)
    if not boxes.isfinite().all():
        raise ValueError(f"boxes must be finite, got {boxes[~boxes.isfinite().all(dim=1)][0].tolist()}")
    height, width = (int(side) for side in image_size)
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be a positive height and width, got {tuple(image_size)}")
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, got {threshold}")
    return masks.detach().to("cpu", torch.float32), boxes, (height, width)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::masks_to_rle")
    def _fake(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float):
        characters = torch.library.get_ctx().new_dynamic_size()
        offsets = boxes.new_empty(boxes.shape[0] + 1, dtype=torch.int64)
        return boxes.new_empty(characters, dtype=torch.uint8), offsets


# --- without the compiled operator -------------------------------------------------------------------------


def _encode(mask: Tensor, box: Tensor, height: int, width: int, threshold: float) -> bytes:
    """The COCO string of one mask, pasted by strips of columns."""
    [(x0, y0, x1, y1)] = pixel_regions(box[None], height, width)
    changes = [np.zeros(0, np.int64)]
    if x0 < x1 and y0 < y1:
        before = False
        columns = max(1, _STRIP // height)
        y = sample_places(y0, y1, box[1], box[3])
        for left in range(x0, x1, columns):
            right = min(left + columns, x1)
            values = sample_mask(mask, sample_places(left, right, box[0], box[2]), y)
            strip = torch.zeros(right - left, height, dtype=torch.bool)
            strip[:, y0:y1] = (values >= threshold).T
            pixels = strip.numpy().ravel()
            changes.append(np.flatnonzero(np.diff(pixels, prepend=before)) + left * height)
            before = pixels[-1]
        if before and x1 < width:
            changes.append(np.array([x1 * height]))
    runs = np.diff(np.concatenate(changes), prepend=0, append=height * width)
    return mask_utils.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)["counts"]
