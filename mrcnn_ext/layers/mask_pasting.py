"""Instance masks pasted into their image, touching no more of the image than the boxes cover."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["paste_masks"]


def paste_masks(masks: Tensor, boxes: Tensor, image_size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Pastes masks into their boxes of an image; detectron2's ``paste_masks_in_image`` on the CPU, bit for bit.

    Args:
        masks: (R, 1, h, w) or (R, h, w) mask probabilities, any floating dtype; taken to float32.
        boxes: (R, 4) boxes, x0, y0, x1, y1 in pixels of the image; taken to float32. One off the image, at
            which detectron2 fails, gives no pixels.
        image_size: height and width of the image in pixels.
        threshold: probability from which on a pixel belongs to the mask.

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
    # numpy's zeros are pages which the system clears when they are first touched: those of the boxes only.
    if device.type == "cpu":
        pasted = torch.from_numpy(np.zeros((len(masks), height, width), dtype=np.bool_))
    else:
        pasted = torch.zeros(len(masks), height, width, dtype=torch.bool, device=device)
    limit = boxes.new_tensor([width, height])
    starts = (boxes[:, :2].floor() - 1).clamp(min=0).minimum(limit)
    ends = (boxes[:, 2:].ceil() + 1).clamp(min=0).minimum(limit)
    regions = torch.cat([starts, ends], dim=1).int().tolist()
    # The arithmetic and its order are detectron2's, for the sake of pixels close to the threshold.
    low, length = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    xs = (torch.arange(width, dtype=torch.float32, device=device) + 0.5 - low[..., 0]) / length[
        ..., 0
    ] * 2 - 1
    ys = (torch.arange(height, dtype=torch.float32, device=device) + 0.5 - low[..., 1]) / length[
        ..., 1
    ] * 2 - 1
    for mask, x, y, (x0, y0, x1, y1), image in zip(masks, xs, ys, regions, pasted, strict=True):
        if x0 < x1 and y0 < y1:
            grid = torch.empty(1, y1 - y0, x1 - x0, 2, device=device)
            grid[..., 0] = x[x0:x1]
            grid[..., 1] = y[y0:y1, None]
            values = F.grid_sample(mask[None, None], grid, align_corners=False)
            torch.ge(values[0, 0], threshold, out=image[y0:y1, x0:x1])
    return pasted
