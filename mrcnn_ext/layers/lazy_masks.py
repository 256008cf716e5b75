"""Instance masks that become pixels of the image when they are looked at, not before."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..ops.mask_pasting import paste_masks
from ..ops.mask_rle import masks_to_rle

__all__ = ["LazyMasks"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class LazyMasks:
    """N instance masks of one image as probabilities within their boxes, pasted into the image on demand.

    A field of detectron2's Instances in place of the (N, height, width) bool tensor, for which it stands
    in wherever masks are taken one by one (``len``, an integer index, iteration), as an array
    (``np.asarray``) or whole (``tensor``). ``to_rle`` gives COCO's encoding without any image.

    Args:
        masks: (N, 1, m, m) mask probabilities, a floating dtype.
        boxes: (N, 4) boxes, x0, y0, x1, y1 in pixels of the image.
        image_size: height and width of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask.

    Raises:
        ValueError: a wrong shape.
    """

    def __init__(self, masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5):
        if masks.dim() != 4 or masks.shape[1] != 1:
            raise ValueError(f"masks must have shape (N, 1, m, m), got {tuple(masks.shape)}")
        if boxes.shape != (len(masks), 4):
            raise ValueError(
                f"boxes must have shape (N, 4) with masks' N = {len(masks)}, got {tuple(boxes.shape)}"
            )
        self.masks = masks
        self.boxes = boxes
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, item) -> "Tensor | LazyMasks":
        """An integer, also one in a tensor, gives that mask, (height, width) bool; anything else LazyMasks of those
        instances."""
        if isinstance(item, Tensor) and item.dim() == 0 and item.dtype in _INTEGERS:
            item = int(item)
        if isinstance(item, (int, np.integer)):
            if not -len(self) <= item < len(self):
                raise IndexError(f"mask {item} of {len(self)}")
            return self._mask(int(item) % len(self))
        return LazyMasks(self.masks[item], self.boxes[item], self.image_size, self.threshold)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._mask(index) for index in range(len(self)))

    def _mask(self, index: int) -> Tensor:
        one = slice(index, index + 1)
        return LazyMasks(self.masks[one], self.boxes[one], self.image_size, self.threshold).tensor[0]

    @property
    def tensor(self) -> Tensor:
        """All masks pasted: (N, height, width) bool."""
        return paste_masks(self.masks, self.boxes, self.image_size, self.threshold)

    @property
    def shape(self) -> torch.Size:
        """That of `tensor`."""
        return torch.Size((len(self), *self.image_size))

    @property
    def device(self) -> torch.device:
        return self.masks.device

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        if copy is False:
            raise ValueError("the masks are not pasted yet: an array of them cannot be had without copying")
        return self.tensor.cpu().numpy().astype(dtype or np.bool_, copy=False)

    def to(self, *args, **kwargs) -> "LazyMasks":
        """Takes what Tensor's does."""
        masks, boxes = (value.to(*args, **kwargs) for value in (self.masks, self.boxes))
        return LazyMasks(masks, boxes, self.image_size, self.threshold)

    def to_rle(self) -> list[dict]:
        """COCO's encoding of each mask, ``{"size": [height, width], "counts": bytes}``, equal to that of
        `tensor` and never holding it."""
        return masks_to_rle(self.masks, self.boxes, self.image_size, self.threshold)

    @staticmethod
    def cat(parts: "list[LazyMasks]") -> "LazyMasks":
        """The masks of several LazyMasks of one image.

        Raises:
            ValueError: images of several sizes, or several thresholds.
        """
        kinds = {(part.image_size, part.threshold) for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"LazyMasks of one image size and threshold can be joined, got {sorted(kinds)}")
        return LazyMasks(
            torch.cat([part.masks for part in parts]), torch.cat([part.boxes for part in parts]), *kinds.pop()
        )

    def __repr__(self) -> str:
        return f"LazyMasks({len(self)} masks of {self.image_size[0]} x {self.image_size[1]} pixels)"
