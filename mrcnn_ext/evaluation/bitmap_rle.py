"""Predicted masks to COCO run-length encoding; of image-sized bitmaps only the part with pixels is encoded."""

import numpy as np
import torch
from pycocotools import mask as mask_utils

__all__ = ["bitmap_to_rle", "bitmaps_to_rle", "encode_masks"]

_PIXELS = 2**28  # that are looked at together on a device


def encode_masks(masks) -> list[dict]:
    """COCO RLE of each of N masks.

    Args:
        masks: (N, H, W) bool tensor on any device, or an object with ``to_rle()``, such as
            :class:`~mrcnn_ext.layers.lazy_masks.LazyMasks`, which encodes without pasting.
    """
    if hasattr(masks, "to_rle"):
        return masks.to_rle()
    if masks.device.type != "cpu":
        return bitmaps_to_rle(masks)
    return [bitmap_to_rle(mask.bool().numpy()) for mask in masks]


def bitmaps_to_rle(bitmaps: torch.Tensor) -> list[dict]:
    """Encodes masks on their device, from which only the ends of the runs are copied.

    Args:
        bitmaps: (N, H, W) bool.

    Returns:
        As `bitmap_to_rle`, of each.
    """
    height, width = bitmaps.shape[1:]
    if len(bitmaps) == 0:
        return []
    size = {"size": [height, width]}
    encoded = []
    for some in bitmaps.split(max(1, _PIXELS // max(height * width, 1))):
        columns = some.bool().transpose(1, 2).flatten(1)
        changes = columns.clone()
        changes[:, 1:] ^= columns[:, :-1]
        index, places = changes.nonzero().cpu().numpy().T
        for own in np.split(places, np.searchsorted(index, np.arange(1, len(some)))):
            runs = np.diff(own, prepend=0, append=height * width)
            encoded.append(mask_utils.frPyObjects({**size, "counts": runs.tolist()}, height, width))
    return encoded


def bitmap_to_rle(bitmap: np.ndarray) -> dict:
    """Encodes one mask; equal to pycocotools' ``encode``, byte for byte.

    Args:
        bitmap: (H, W) array of bool.

    Returns:
        COCO RLE: ``{"size": [H, W], "counts": bytes}``.
    """
    height, width = bitmap.shape
    changes = _changes(bitmap)
    runs = np.diff(changes, prepend=0, append=height * width)
    return mask_utils.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def _changes(bitmap: np.ndarray) -> np.ndarray:
    """Where, down one column after the other, pixels differ from the one before; before the first is 0."""
    height, width = bitmap.shape
    rows = np.flatnonzero(bitmap.any(axis=1))
    if rows.size == 0:
        return rows
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(bitmap[top:bottom].any(axis=0))
    left, right = columns[0], columns[-1] + 1
    # A row of zeros below keeps apart columns which do not touch in the image; those of full height do.
    stride = min(bottom - top + 1, height)
    crop = np.zeros((right - left, stride), dtype=bool)
    crop[:, : bottom - top] = bitmap[top:bottom, left:right].T
    column, row = np.divmod(np.flatnonzero(np.diff(crop.ravel(), prepend=False, append=False)), stride)
    changes = (left + column) * height + top + row
    return changes[changes < height * width]
