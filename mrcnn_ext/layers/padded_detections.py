"""Proposals and detections in tensors of fixed shapes: what `select_detections` and its kin find, but nothing has to be
known of it by the host, so that a GPU is never waited for. Places beyond the last one found are padding."""

from typing import NamedTuple

import torch
from torch import Tensor

from .suppression import suppress

__all__ = ["PADDING", "PaddedDetections", "PaddedProposals", "is_padding", "pad_detections", "pad_proposals"]

PADDING = -torch.inf  # the score, or logit, of what is none
_CANDIDATES = 8  # for each detection wanted; few of them fill an image as a rule


def is_padding(scores: Tensor) -> Tensor:
    """Which scores are those of padding: no other is infinite, and a score computed of one may be no number."""
    return ~scores.isfinite()


class PaddedProposals(NamedTuple):
    """What `pad_proposals` found in N images, best first.

    Attributes:
        boxes: (N, P, 4) within the images; zeros where there is none.
        logits: (N, P); `PADDING` where there is none.
        exact: () bool, whether these are the proposals; see `suppress`.
    """

    boxes: Tensor
    logits: Tensor
    exact: Tensor


class PaddedDetections(NamedTuple):
    """What `pad_detections` found in N images, best first.

    Attributes:
        boxes: (N, D, 4) within the images; zeros where there is none.
        scores: (N, D); `PADDING` where there is none.
        classes, rows: (N, D) int64; zeros where there is none.
        exact: () bool, whether these are the detections: `suppress` was done, and its candidates sufficed.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    rows: Tensor
    exact: Tensor


def pad_proposals(
    boxes: list[Tensor],
    logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    topk: int,
    min_size: float,
    smallest: bool = False,
    lowest: float = PADDING,
) -> PaddedProposals:
    """The best boxes of all levels after non-maximum suppression level by level, at inference.

    Args:
        boxes: (N, n_l, 4) float32 of each level, x0, y0, x1, y1, the best of each image first.
        logits: (N, n_l) of each level.
        image_sizes: height and width of each image, to which its boxes are clipped.
        nms_thresh: the highest intersection over union of two proposals of one level.
        topk: at most so many in an image, P.
        min_size: width and height of a proposal are above it.
        smallest: whether they may be equal to it.
        lowest: logits of a proposal are not below it.
    """
    count = max(level.shape[1] for level in logits)
    # One group for each level and image, all of one length.
    padded = [torch.nn.functional.pad(level, (0, 0, 0, count - level.shape[1])) for level in boxes]
    padded_logits = [
        torch.nn.functional.pad(level, (0, count - level.shape[1]), value=PADDING) for level in logits
    ]
    candidates, scores = torch.stack(padded, 1), torch.stack(padded_logits, 1)  # (N, L, n, 4), (N, L, n)
    valid = candidates.isfinite().all(dim=3) & scores.isfinite() & (scores >= lowest)
    candidates = _clip(candidates, image_sizes)
    sides = candidates[..., 2:] - candidates[..., :2]
    valid &= (sides >= min_size if smallest else sides > min_size).all(dim=3)
    keep, exact = suppress(candidates.flatten(0, 1), valid.flatten(0, 1), nms_thresh)
    scores = scores.masked_fill(~keep.view_as(scores), PADDING).flatten(1)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :topk], order[:, :topk]
    found = candidates.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, 4))
    return PaddedProposals(found.masked_fill(is_padding(scores)[..., None], 0), scores, exact)


def pad_detections(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    image_sizes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    min_size: float | None = None,
) -> PaddedDetections:
    """The detections of `select_detections` of each image, boxes that are no number left out, ``exact`` telling if so.

    Args:
        boxes: (N, R, 4) or (N, R, K, 4) x0, y0, x1, y1, floating point.
        scores: (N, R, K), floating point.
        valid: (N, R) bool, rows that are no padding.
        image_sizes: height and width of each image, to which its boxes are clipped.
        score_thresh: only scores above it.
        nms_thresh: the highest intersection over union of two detections of one class.
        topk: at most so many in an image, not negative.
        min_size: boxes of a smaller width or height are left out; None for none.
    """
    images, _, classes = scores.shape
    boxes = boxes.view(images, -1, boxes.shape[2:].numel() // 4, 4)
    valid = valid & boxes.isfinite().all(dim=3).all(dim=2) & scores.isfinite().all(dim=2)
    passing = (valid[..., None] & (scores > score_thresh)).flatten(1)
    values = scores.flatten(1).masked_fill(~passing, PADDING)
    wanted = min(_CANDIDATES * max(topk, 1), values.shape[1])
    # Equal scores in the order of their rows and classes, as a stable sort of all of them.
    index = values.topk(wanted, dim=1).indices.sort(dim=1).values
    values, order = values.gather(1, index).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    rows, of_class = index // classes, index % classes
    places = rows * boxes.shape[2] + (of_class if boxes.shape[2] > 1 else 0)
    candidates = boxes.flatten(1, 2).gather(1, places[..., None].expand(-1, -1, 4))
    candidates = _clip(candidates, image_sizes)
    present = ~is_padding(values)
    if min_size is not None:
        present &= (candidates[..., 2:] - candidates[..., :2] >= min_size).all(dim=2)
    keep, settled = suppress(candidates, present, nms_thresh, of_class)
    enough = (passing.sum(dim=1) <= wanted) | (keep.sum(dim=1) >= topk)
    # Those that stay first, in order.
    order = (~keep).to(torch.uint8).sort(dim=1, stable=True).indices[:, :topk]
    lost = ~keep.gather(1, order)
    found = candidates.gather(1, order[..., None].expand(-1, -1, 4)).masked_fill(lost[..., None], 0)
    return PaddedDetections(
        found,
        values.gather(1, order).masked_fill(lost, PADDING),
        of_class.gather(1, order).masked_fill(lost, 0),
        rows.gather(1, order).masked_fill(lost, 0),
        settled & enough.all(),
    )


def _clip(boxes, image_sizes):
    """Boxes (N, ..., 4), each within its image."""
    clipped = []
    for image, (height, width) in zip(boxes, image_sizes, strict=True):
        x, y = image[..., 0::2].clamp(0, width), image[..., 1::2].clamp(0, height)
        clipped.append(torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1))
    return torch.stack(clipped)
