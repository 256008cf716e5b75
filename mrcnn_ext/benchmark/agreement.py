"""How well the outputs of two detectors agree, detection by detection."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from pycocotools import mask as mask_utils
from torch import Tensor

from ..evaluation.bitmap_rle import encode_masks

SAME_BOX = 0.8  # IoU from which on two boxes of one class are taken for the same detection


def matches(stock: Instances, ours: Instances) -> tuple[Tensor, Tensor]:
    """Indices of detections of one class whose boxes overlap, the best overlap first, each used once."""
    overlap = pairwise_iou(Boxes(stock.pred_boxes.tensor.cpu()), Boxes(ours.pred_boxes.tensor.cpu()))
    overlap[stock.pred_classes.cpu()[:, None] != ours.pred_classes.cpu()] = 0
    pairs = []
    for index in overlap.flatten().argsort(descending=True, stable=True).tolist():
        row, column = divmod(index, overlap.shape[1])
        if overlap[row, column] < SAME_BOX:
            break
        pairs.append((row, column))
        overlap[row] = overlap[:, column] = -1
    return tuple(torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1))


def agreement(stock: list[Instances], ours: list[Instances], min_score: float = 0.0) -> dict[str, float]:
    """Of the detections of several images with a score of at least `min_score`.

    Returns:
        dict: "detections" of stock's; "matched", the share of them which are among ours; and of these the
        greatest difference of boxes "box_px" and scores "score", the least IoU of masks "mask_iou" and their
        mean "mask_iou_mean", and the greatest distance of keypoints "keypoint_px" and its median
        "keypoint_px_median"; NaN where there is none to compare.
    """
    found = {"box": [], "score": [], "mask": [], "keypoint": []}
    detections = 0
    for a, b in zip(stock, ours, strict=True):
        a = a[a.scores >= min_score]
        detections += len(a)
        rows, columns = matches(a, b)
        box_a, box_b = a.pred_boxes.tensor.cpu()[rows], b.pred_boxes.tensor.cpu()[columns]
        found["box"] += (box_a - box_b).abs().amax(dim=1).tolist() if len(rows) else []
        found["score"] += (a.scores.cpu()[rows] - b.scores.cpu()[columns]).abs().tolist()
        if a.has("pred_masks"):
            found["mask"] += _mask_ious(a.pred_masks, b.pred_masks, rows, columns)
        if a.has("pred_keypoints"):
            found["keypoint"] += _distances(a.pred_keypoints.cpu()[rows], b.pred_keypoints.cpu()[columns])

    def value(of, name):
        return float(of(found[name])) if found[name] else float("nan")

    return {
        "detections": detections,
        "matched": len(found["box"]) / detections if detections else float("nan"),
        "box_px": value(np.max, "box"),
        "score": value(np.max, "score"),
        "mask_iou": value(np.min, "mask"),
        "mask_iou_mean": value(np.mean, "mask"),
        "keypoint_px": value(np.max, "keypoint"),
        "keypoint_px_median": value(np.median, "keypoint"),
    }


def _mask_ious(a, b, rows: Tensor, columns: Tensor) -> list[float]:
    a, b = encode_masks(a), encode_masks(b)
    pairs = [(a[row], b[column]) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)]
    # Two masks without a pixel are the same.
    areas = [mask_utils.area([one, other]).sum() for one, other in pairs]
    return [
        float(mask_utils.iou([one], [other], [0])[0, 0]) if area else 1.0
        for (one, other), area in zip(pairs, areas, strict=True)
    ]


def _distances(a: Tensor, b: Tensor) -> list[float]:
    return (a[..., :2] - b[..., :2]).norm(dim=2).flatten().tolist()
