"""Instance masks pasted into their image, touching no more of the image than the boxes cover."""

import math
import mmap

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["paste_masks", "pixel_regions", "sample_mask", "sample_places", "zeros_on_demand"]


_PIXELS = 2**26  # that are pasted at once: some 20 bytes each


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    threshold: float = 0.5,
    at_once: bool | None = None,
) -> Tensor:
    """Pastes masks into their boxes of an image; detectron2's ``paste_masks_in_image`` on the CPU, bit for bit.

    Args:
        masks: (R, 1, h, w) or (R, h, w) mask probabilities, any floating dtype; taken to float32.
        boxes: (R, 4) boxes, x0, y0, x1, y1 in pixels of the image; taken to float32. One off the image, at
            which detectron2 fails, gives no pixels.
        image_size: height and width of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask.
        at_once: True looks at every pixel of the image for every mask, in a few large operations and without waiting
            for the device; False at those of the boxes, box by box. None: as is faster on the device of the masks. The
            pixels are the same.

    Returns:
        (R, height, width) bool, on the device of the masks.

    Raises:
        ValueError: a wrong shape.
    """
    shape = tuple(masks.shape)
    if masks.dim() == 4 and shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3:
        raise ValueError(f"masks must have shape (R, 1, h, w) or (R, h, w), got {shape}")
    if boxes.shape != (shape[0], 4):
        raise ValueError(f"boxes must have shape (R, 4) with masks' R = {shape[0]}, got {tuple(boxes.shape)}")
    height, width = (int(side) for side in image_size)
    device = masks.device
    masks, boxes = masks.detach().float(), boxes.detach().to(device, torch.float32)
    pasted = zeros_on_demand((len(masks), height, width), torch.bool, device)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    xs, ys = sample_places(0, width, left, right), sample_places(0, height, top, bottom)
    # What no box reaches is 0, and belongs to no mask, unless 0 is enough to belong to one.
    if threshold > 0 and (device.type != "cpu" if at_once is None else at_once):
        _paste_at_once(masks, xs, ys, threshold, pasted)
        return pasted
    regions = pixel_regions(boxes, height, width)
    for mask, x, y, (x0, y0, x1, y1), image in zip(masks, xs, ys, regions, pasted, strict=True):
        if x0 < x1 and y0 < y1:
            values = sample_mask(mask, x[x0:x1], y[y0:y1])
            torch.ge(values, threshold, out=image[y0:y1, x0:x1])
    return pasted


def _paste_at_once(masks, xs, ys, threshold, pasted):
    images = max(1, _PIXELS // pasted[:1].numel()) if len(masks) else 1
    parts = (values.split(images) for values in (masks, xs, ys, pasted))
    for some, x, y, result in zip(*parts, strict=True):
        grid = torch.empty(*result.shape, 2, device=masks.device)
        grid[..., 0] = x[:, None]
        grid[..., 1] = y[:, :, None]
        values = F.grid_sample(some[:, None], grid, align_corners=False)[:, 0]
        torch.ge(values, threshold, out=result)


def zeros_on_demand(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``torch.zeros`` whose memory on the CPU costs nothing where it is not written."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size == 0 or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages which the system clears when they are first touched: those of the boxes only. Small ones; numpy's zeros
    # ask for huge pages, and to find and clear those can take longer than all the rest.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


# The pixels, the arithmetic and its order are detectron2's, for the sake of those close to the threshold.


def pixel_regions(boxes: Tensor, height: int, width: int) -> list[list[int]]:
    """The pixels x0, y0, x1, y1 of an image that the masks of boxes (R, 4) may reach; the ends are beyond."""
    limit = boxes.new_tensor([width, height])
    starts = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit)
    ends = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(limit)
    return torch.cat([starts, ends], dim=1).int().tolist()


def sample_places(start: int, stop: int, low: Tensor, high: Tensor) -> Tensor:
    """The centres of pixels [start, stop) of one axis, -1 at the low side of a box and 1 at the high one.

    Sides of shape (R, 1) give (R, stop - start), single ones (stop - start,).
    """
    return (torch.arange(start, stop, device=low.device) + 0.5 - low) / (high - low) * 2 - 1


def sample_mask(mask: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Probabilities (len(y), len(x)) of a mask (h, w) at `sample_places`."""
    grid = torch.empty(1, len(y), len(x), 2, device=mask.device)
    grid[..., 0] = x
    grid[..., 1] = y[:, None]
    return F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
