"""Which of the scored boxes of an image are its detections."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms, remove_small_boxes

from ..ops.detections import Detections, can_select, top_detections

__all__ = ["Detections", "select_detections"]

# From so many coordinates on torchvision's batched_nms takes class by class on the CPU. Below it moves the boxes
# of each class apart instead, which rounds them.
_CLASS_BY_CLASS = 4000


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk: int,
    min_size: float | None = None,
) -> Detections:
    """The best boxes after non-maximum suppression class by class: the results of detectron2's and torchvision's box
    heads, without work on boxes that cannot be among them.

    Args:
        boxes: (R, 4) or (R, K, 4) x0, y0, x1, y1, floating point.
        scores: (R, K), floating point.
        image_size: height and width, to which the boxes are clipped.
        score_thresh: only scores above it.
        nms_thresh: the highest intersection over union of two detections of one class.
        topk: at most so many; negative for all.
        min_size: boxes of a smaller width or height are left out; None for none.
    """
    boxes = boxes.view(len(boxes), boxes.shape[1:].numel() // 4, 4)
    if topk >= 0 and can_select(boxes, scores, nms_thresh):
        found = top_detections(boxes, scores, image_size, score_thresh, nms_thresh, topk, min_size)
        if found is not None:
            return found
    return _select_step_by_step(boxes, scores, image_size, score_thresh, nms_thresh, topk, min_size)


def _select_step_by_step(boxes, scores, image_size, score_thresh, nms_thresh, topk, min_size):
    """Boxes (R, 1 or K, 4), of any dtype, on any device, finite or not, differentiable."""
    passing = scores > score_thresh
    count = int(passing.sum())
    class_by_class = boxes.device.type == "cpu" and 4 * count > _CLASS_BY_CLASS
    # Whether a box stays depends on boxes of higher scores alone, and few of them fill the image as a rule.
    wanted = 8 * max(topk, 1) if class_by_class and topk >= 0 else count
    while True:
        chosen = passing
        if wanted < count:
            chosen = passing & (scores >= scores[passing].topk(wanted).values[-1])
        rows, classes = chosen.nonzero(as_tuple=True)
        candidates = _clip(boxes[rows, 0 if boxes.shape[1] == 1 else classes], image_size)
        values = scores[chosen]
        if min_size is not None:
            large = remove_small_boxes(candidates, min_size)
            candidates, values, rows, classes = (x[large] for x in (candidates, values, rows, classes))
        suppress = _nms_class_by_class if class_by_class else batched_nms
        keep = suppress(candidates, values, classes, nms_thresh)
        if wanted >= count or len(keep) >= topk:
            break
        wanted *= 4
    if topk >= 0:
        keep = keep[:topk]
    return Detections(candidates[keep], values[keep], classes[keep], rows[keep])


def _clip(boxes, image_size):
    height, width = image_size
    x = boxes[:, 0::2].clamp(min=0, max=width)
    y = boxes[:, 1::2].clamp(min=0, max=height)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)


def _nms_class_by_class(boxes, scores, classes, threshold):
    kept = [torch.zeros(0, dtype=torch.int64, device=boxes.device)]
    for index in classes.unique():
        members = (classes == index).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    kept = torch.cat(kept).sort().values
    return kept[scores[kept].sort(descending=True).indices]
