"""Ground truth keypoints as distributions over the cells of a RoI, and the loss against them."""

import torch
from torch import Tensor

__all__ = ["axis_distributions", "axis_loss", "heatmap_loss", "keypoints_to_cells"]


def keypoints_to_cells(keypoints: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where keypoints are within a grid laid over their boxes.

    Args:
        keypoints: (N, K, 3): x, y in pixels of the image, visibility as COCO's (0: not labelled).
        boxes: (N, 4): x0, y0, x1, y1 in pixels.
        size: (H, W) of the grid.

    Returns:
        (N, K, 2): x, y in cells; the first cell spans 0 to 1. (N, K): whether the keypoint is labelled and in
        its box, the box's sides included, as in ``detectron2.structures.Keypoints.to_heatmap``.
    """
    cells = torch.tensor([size[1], size[0]], dtype=boxes.dtype, device=boxes.device)
    start, end = boxes[:, None, :2], boxes[:, None, 2:]
    places = (keypoints[..., :2] - start) * (cells / (end - start))
    inside = (keypoints[..., :2] >= start) & (keypoints[..., :2] <= end) & places.isfinite()
    return places, inside.all(dim=2) & (keypoints[..., 2] > 0)


def axis_distributions(places: Tensor, cells: int, sigma: float, label_smoothing: float = 0.0) -> Tensor:
    """Target distributions over the cells of an axis.

    Args:
        places: (M,) in cells, from 0 to ``cells``.
        cells: C.
        sigma: standard deviation in cells of a Gaussian at the place; 0 gives all to the cell it is in.
        label_smoothing: part of the whole that is spread evenly over all cells.

    Returns:
        (M, C), each row of sum 1.
    """
    index = torch.arange(cells, device=places.device)
    if sigma > 0:
        target = torch.softmax(-((index + 0.5 - places[:, None]) ** 2) / (2 * sigma**2), dim=1)
    else:
        target = (index == places.floor().clamp(max=cells - 1)[:, None]).to(places.dtype)
    return (1 - label_smoothing) * target + label_smoothing / cells


def heatmap_loss(logits: Tensor, places: Tensor, sigma: float, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax over each heatmap against the product of its axes' distributions.

    With ``sigma`` and ``label_smoothing`` 0 it is the loss of Mask R-CNN, section 5.

    Args:
        logits: (M, H, W).
        places: (M, 2): x, y in cells.
        sigma, label_smoothing: see `axis_distributions`.

    Returns:
        The sum over the M heatmaps, in float32 or wider.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    M, H, W = logits.shape
    log_probability = logits.flatten(1).log_softmax(dim=1).view(M, H, W)
    x = axis_distributions(places[:, 0], W, sigma, label_smoothing)
    y = axis_distributions(places[:, 1], H, sigma, label_smoothing)
    # Not as matrix products, which autocast would round.
    return -((log_probability * x[:, None, :]).sum(dim=2) * y).sum()


def axis_loss(logits: Tensor, places: Tensor, sigma: float, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax over the bins of one axis; arguments as `heatmap_loss`'s, of one axis.

    Over the sum of its axes' logits `heatmap_loss` is the sum of this over both axes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = axis_distributions(places, logits.shape[1], sigma, label_smoothing)
    return -(target * logits.log_softmax(dim=1)).sum()
