"""What a mask branch's logits stand for, and the losses on them."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "boundary_loss",
    "mask_boundaries",
    "mask_iou_targets",
    "mask_log_odds",
    "mask_sigmoid_loss",
    "mask_softmax_loss",
]


def mask_sigmoid_loss(logits: Tensor, classes: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of each RoI's mask of its own class, in which the others take no part (Mask R-CNN,
    section 3); the mean over all pixels.

    Args:
        logits: (R, K, m, m), or (R, 1, m, m) of class-agnostic masks.
        classes: (R,) int64 in [0, K).
        masks: (R, m, m), 0.0 or 1.0.
    """
    return F.binary_cross_entropy_with_logits(mask_log_odds(logits, classes), masks)


def mask_softmax_loss(logits: Tensor, classes: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy of each pixel's softmax over the classes and the background, for which masks compete (Mask
    R-CNN, table 2b: multinomial masks); the mean over all pixels.

    Args:
        logits: (R, K + 1, m, m), the background last; of class-agnostic masks (R, 2, m, m).
        classes: (R,) int64 in [0, K).
        masks: (R, m, m), 0.0 or 1.0.
    """
    background = logits.shape[1] - 1
    labels = torch.where(masks > 0.5, _channels(classes, background)[:, None, None], background)
    return F.cross_entropy(logits, labels)


def mask_log_odds(logits: Tensor, classes: Tensor, softmax: bool = False) -> Tensor:
    """Log-odds of each pixel to be of the RoI's class, (R, m, m): the sigmoid gives the probability.

    Args:
        logits: as `mask_softmax_loss` takes them if ``softmax``, else as `mask_sigmoid_loss` does.
        classes: (R,) int64.
    """
    num_masks = logits.shape[1] - 1 if softmax else logits.shape[1]
    channels = _channels(classes, num_masks)
    # As many as classes: the number of logits may count as a constant where ONNX is exported.
    own = logits[torch.arange(classes.shape[0], device=classes.device), channels]
    if not softmax:
        return own
    index = channels[:, None, None, None].expand(-1, 1, logits.shape[2], logits.shape[3])
    return own - logits.scatter(1, index, float("-inf")).logsumexp(dim=1)


def _channels(classes: Tensor, num_masks: int) -> Tensor:
    """Where the masks of classes are: a single one is that of every class."""
    return torch.zeros_like(classes) if num_masks == 1 else classes


def mask_iou_targets(predicted: Tensor, masks: Tensor, areas: Tensor) -> Tensor:
    """IoU of predicted masks with whole objects, of which a RoI may hold but a part (Mask Scoring R-CNN,
    section 3.3), (R,).

    Args:
        predicted: (R, m, m) bool.
        masks: (R, m, m), 0.0 or 1.0: the part of the object within the RoI.
        areas: (R,) area of the whole object, in pixels of these masks.
    """
    predicted = predicted.to(masks.dtype)
    inside = masks.sum(dim=(1, 2))
    intersection = (predicted * masks).sum(dim=(1, 2))
    # Rasterised, the part may have more pixels than the whole was given.
    union = predicted.sum(dim=(1, 2)) + areas.maximum(inside) - intersection
    return intersection / union.clamp(min=1)


def mask_boundaries(masks: Tensor) -> Tensor:
    """The pixels of masks that have a pixel outside among their eight neighbours, (R, m, m), 0.0 or 1.0; what is
    beyond the edge counts as outside.

    Args:
        masks: (R, m, m), 0.0 or 1.0.
    """
    outside = F.pad(1 - masks, (1, 1, 1, 1), value=1.0)
    return masks * F.max_pool2d(outside, kernel_size=3, stride=1)


def boundary_loss(logits: Tensor, boundaries: Tensor) -> Tensor:
    """Binary cross-entropy plus dice loss of predicted boundaries (Boundary-preserving Mask R-CNN, equations 2 to
    4); the mean over the RoIs. Dice does not mind how few pixels a boundary has.

    Args:
        logits: (R, m, m).
        boundaries: (R, m, m), 0.0 or 1.0.
    """
    probabilities = logits.to(boundaries.dtype).sigmoid()
    overlap = (probabilities * boundaries).sum(dim=(1, 2))
    total = (probabilities**2).sum(dim=(1, 2)) + (boundaries**2).sum(dim=(1, 2))
    dice = 1 - 2 * overlap / (total + 1)  # the 1 is for masks without any boundary
    return F.binary_cross_entropy_with_logits(logits, boundaries) + dice.mean()
