"""Boxes as tensors."""

import torch
from torch import Tensor

__all__ = ["scaled_boxes"]


def scaled_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (R, 4) with the same centres and ``scale`` times the sides; they may reach out of the image."""
    if scale == 1:
        return boxes
    grow = (boxes[:, 2:] - boxes[:, :2]) * ((scale - 1) / 2)
    return torch.cat([boxes[:, :2] - grow, boxes[:, 2:] + grow], dim=1)
