"""Proposals and detections on the CPU, each by one operator: decoding, clipping and non-maximum suppression from the
best box down, which ends as soon as an image is full."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import _extension

__all__ = ["Detections", "Proposals", "can_propose", "can_select", "rpn_proposals", "top_detections"]


class Proposals(NamedTuple):
    """What `rpn_proposals` found in N images, best first.

    Attributes:
        boxes: a tensor (P_i, 4) per image, within it.
        logits: a tensor (P_i,) per image.
    """

    boxes: list[Tensor]
    logits: list[Tensor]


class Detections(NamedTuple):
    """What `top_detections` found, best first.

    Attributes:
        boxes: (D, 4) x0, y0, x1, y1 within the image, in pixels.
        scores: (D,).
        classes: (D,) int64, columns of the scores.
        rows: (D,) int64, rows of the scores.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    rows: Tensor


_HALF = (torch.bfloat16, torch.float16)


def _serves(tensors, nms_thresh, dtypes):
    return (
        _extension.is_available()
        and nms_thresh >= 0
        and all(x.device.type == "cpu" and x.dtype in dtypes for x in tensors)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    )


def can_select(boxes: Tensor, scores: Tensor, nms_thresh: float) -> bool:
    """Whether `top_detections` takes these: float32 on the CPU, of which no gradient is wanted."""
    return _serves([boxes, scores], nms_thresh, (torch.float32,))


def can_propose(logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], nms_thresh: float) -> bool:
    """Whether `rpn_proposals` takes these: of its dtypes, on the CPU, no gradient being wanted."""
    predictions = [*logits, *deltas]
    return (
        _serves(predictions, nms_thresh, (torch.float32, *_HALF))
        and _serves(anchors, nms_thresh, (torch.float32,))
        and len({x.dtype for x in logits}) == 1
    )


def rpn_proposals(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    image_sizes: list[tuple[int, int]],
    weights: tuple[float, float, float, float],
    scale_clamp: float,
    nms_thresh: float,
    pre_topk: int,
    post_topk: int,
    min_size: float,
    drop_not_finite: bool = True,
) -> Proposals:
    """The proposals of a region proposal network (Faster R-CNN, Ren et al. 2015, section 3.1): detectron2's
    ``find_top_rpn_proposals`` of the decoded anchors, order and ties included. Not differentiable.

    Args:
        logits: (N, n_l) float32, bfloat16 or float16 of each level.
        deltas: (N, n_l, 4) of each level, in one of those too, taken to float32: dx, dy, dw, dh.
        anchors: (n_l, 4) float32 of each level: x0, y0, x1, y1 in pixels.
        image_sizes: height and width of each image, to which its boxes are clipped.
        weights: by which the deltas are divided.
        scale_clamp: the largest logarithm of a box's width over its anchor's.
        nms_thresh: the highest intersection over union of two proposals of one level; not negative.
        pre_topk: so many anchors of a level are looked at.
        post_topk: at most so many proposals in an image.
        min_size: width and height of a proposal are above it, in pixels.
        drop_not_finite: whether to leave out, rather than to refuse, boxes and logits that are not finite.

    Raises:
        FloatingPointError: one of the best is not finite, in an image, and they are not dropped.
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: a tensor is not on the CPU, or the operators are not compiled.
    """
    _extension.require("rpn_proposals")
    heights, widths = ([size[side] for size in image_sizes] for side in (0, 1))
    boxes, found, counts = torch.ops.mrcnn_ext.rpn_proposals(
        logits,
        deltas,
        anchors,
        heights,
        widths,
        weights,
        scale_clamp,
        nms_thresh,
        pre_topk,
        post_topk,
        min_size,
        drop_not_finite,
    )
    counts = counts.tolist()
    if -1 in counts:
        raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
    return Proposals(
        [of[:count] for of, count in zip(boxes, counts, strict=True)],
        [of[:count] for of, count in zip(found, counts, strict=True)],
    )


def top_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    min_size: float | None = None,
) -> Detections | None:
    """The best boxes after non-maximum suppression class by class, as `mrcnn_ext.layers.select_detections` finds them.
    Not differentiable.

    Args:
        boxes: (R, 1 or K, 4) float32, x0, y0, x1, y1 in pixels.
        scores: (R, K) float32.
        image_size: height and width, to which the boxes are clipped.
        score_thresh: only scores above it.
        nms_thresh: the highest intersection over union of two detections of one class; not negative.
        topk: at most so many; not negative.
        min_size: boxes of a smaller width or height are left out, in pixels; None for none.

    Returns:
        None if a box whose score is above the threshold is not finite.

    Raises:
        TypeError, ValueError: an argument has the wrong dtype or shape.
        NotImplementedError: a tensor is not on the CPU, or the operators are not compiled.
    """
    _extension.require("select_detections")
    *found, count = torch.ops.mrcnn_ext.select_detections(
        boxes, scores, *image_size, score_thresh, nms_thresh, topk, min_size
    )
    count = int(count)
    return None if count < 0 else Detections(*(values[:count] for values in found))


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::rpn_proposals")
    def _fake_proposals(
        logits, deltas, anchors, heights, widths, weights, clamp, thresh, pre, post, size, drop
    ):
        most = min(post, sum(min(pre, level.shape[1]) for level in logits))
        images, like = len(heights), logits[0]
        return (
            like.new_empty(images, most, 4, dtype=torch.float32),
            like.new_empty(images, most),
            like.new_empty(images, dtype=torch.int64),
        )

    @torch.library.register_fake("mrcnn_ext::select_detections")
    def _fake_detections(boxes, scores, height, width, score_thresh, nms_thresh, topk, min_size):
        most = min(topk, scores.shape[0] * scores.shape[1])
        numbers = scores.new_empty(most, dtype=torch.int64)
        return (
            boxes.new_empty(most, 4),
            scores.new_empty(most),
            numbers,
            torch.empty_like(numbers),
            scores.new_empty((), dtype=torch.int64),
        )
