"""Boxes as tensors."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["move_maps", "scaled_boxes"]


def scaled_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (R, 4) with the same centres and ``scale`` times the sides; they may reach out of the image."""
    if scale == 1:
        return boxes
    grow = (boxes[:, 2:] - boxes[:, :2]) * ((scale - 1) / 2)
    return torch.cat([boxes[:, :2] - grow, boxes[:, 2:] + grow], dim=1)


def move_maps(maps: Tensor, boxes: Tensor, to: Tensor) -> Tensor:
    """Maps that lie over boxes as maps over other boxes: bilinear samples at the centres of their cells, zero where the
    first did not reach.

    Args:
        maps: (R, C, H, W).
        boxes: (R, 4) x0, y0, x1, y1, which the maps lie over.
        to: (R, 4), which the results are to lie over.

    Returns:
        (R, C, H, W).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)  # also where there is no box yet, and maps are zero
    scale = (to[:, 2:] - to[:, :2]) / sides
    offset = (to[:, :2] + to[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / sides
    H, W = maps.shape[2], maps.shape[3]
    x, y = (
        ((torch.arange(cells, device=maps.device) * 2 + 1) / cells - 1) * scale[:, axis, None]
        + offset[:, axis, None]
        for axis, cells in enumerate((W, H))
    )
    grid = torch.stack([x[:, None, :].expand(-1, H, -1), y[:, :, None].expand(-1, -1, W)], dim=3)
    return F.grid_sample(maps, grid.to(maps.dtype), mode="bilinear", align_corners=False)
