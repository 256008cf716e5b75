"""Masks within boxes, brought to one size: the targets of a mask head."""

import torch
from torch import Tensor

from . import _extension

__all__ = ["can_crop_masks", "crop_masks"]

_LARGEST = 1e6  # csrc/training_targets/crop_masks_cpu.cpp


def can_crop_masks(masks: Tensor, boxes: Tensor) -> bool:
    """Whether `crop_masks` takes these: it is compiled, they are on the CPU, and the boxes are finite."""
    if not (_extension.is_available() and _extension.backend() == "compiled"):
        return False
    fits = masks.device.type == boxes.device.type == "cpu" and masks.dtype == torch.bool and masks.numel() > 0
    return fits and (len(boxes) == 0 or bool(boxes.abs().amax() < _LARGEST))


def crop_masks(masks: Tensor, index: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Brings the parts of masks that lie in boxes to one size: `torchvision.ops.roi_align` (aligned, as many samples as
    there are pixels) of the mask of each box by itself, at least 0.5, bit for bit. Not differentiable.

    Args:
        masks: (G, H, W) bool, on the CPU.
        index: (R,) int64, which mask each box is of.
        boxes: (R, 4) float32 x0, y0, x1, y1 in pixels, finite and below a million.
        size: height and width of the results.

    Returns:
        (R, size, size) bool.

    Raises:
        ValueError, IndexError: an argument has the wrong shape, dtype or values.
        NotImplementedError: masks is not on the CPU, or the operators are not compiled.
    """
    _extension.require("crop_masks")
    return torch.ops.mrcnn_ext.crop_masks(masks, index, boxes, size)


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::crop_masks")
    def _fake(masks, index, boxes, size):
        return masks.new_empty((boxes.shape[0], size, size))
