"""A detector as one function of tensors: what TorchScript, torch.export and ONNX can follow."""

import math
from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from ..layers import roi_align_pyramid
from ..layers.boxes import scaled_boxes
from ..layers.mask_losses import mask_log_odds
from ..modeling import FusedROIPooler, TorchvisionAnchorGenerator
from ..modeling.mask_head import MaskHead, MaskScoringHead

__all__ = ["Detector"]

_LAST = -1e30  # below every finite score
_IN_LINE = 1000  # boxes of 4000 coordinates


class Detector(nn.Module):
    """Inference of a GeneralizedRCNN for one image, over its own submodules and parameters.

    No branch depends on a value. Where detectron2 takes fewer anchors than it may from a small level, here
    anchors with a score of -inf fill up to the number, and fall out before suppression.

    Args:
        model: passes `check_exportable`; its poolers are `FusedROIPooler`s.

    Attributes:
        output_names: of what ``forward`` returns.
    """

    def __init__(self, model: GeneralizedRCNN):
        super().__init__()
        self.model = model
        heads = model.roi_heads
        self.is_c4 = isinstance(heads, Res5ROIHeads)
        self.keypoint_on = getattr(
            heads, "keypoint_on", False
        )  # Res5ROIHeads of detectron2 has no such thing
        self.keypoint_box_scale = getattr(heads, "keypoint_box_scale", 1.0)
        pools_once = heads.mask_on and self.keypoint_on and self.keypoint_box_scale == 1
        self.pools_once = pools_once and (self.is_c4 or getattr(heads, "pools_once", False))
        self.output_names = ["boxes", "scores", "classes"]
        if heads.mask_on:
            self.output_names += ["masks", "mask_scores"] if _scores_masks(heads.mask_head) else ["masks"]
        if self.keypoint_on:
            self.output_names += ["heatmaps"]

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: (C, H, W) float32, of the channel order and range that the model was trained on, not
                normalised; below and right of the picture it is filled with the model's ``pixel_mean``.
            size: (2,) int64, height and width of the picture.

        Returns:
            boxes (R, 4) float32, x0, y0, x1, y1 in pixels; scores (R,), falling; classes (R,) int64; from a
            model with masks, their probabilities (R, 1, m, m), and of `MaskScoringHead` their scores (R,); from
            one with keypoints, the heatmaps' logits (R, K, S_h, S_w), each over its box times the model's
            ``keypoint_box_scale``.
        """
        model, heads = self.model, self.model.roi_heads
        features = model.backbone(((image - model.pixel_mean) / model.pixel_std)[None])
        limit = size.flip(0).repeat(2).to(image.dtype)  # of x0, y0, x1, y1
        proposals = self._proposals(features, limit, image)
        boxes, scores, classes = self._detections(features, proposals, limit)
        outputs = [boxes, scores, classes]
        if heads.mask_on:
            x = self._pool("mask", features, boxes)
            outputs += _masks(heads.mask_head, x, scores, classes)
        if self.keypoint_on:
            if not self.pools_once:
                x = self._pool("keypoint", features, scaled_boxes(boxes, self.keypoint_box_scale))
            outputs.append(heads.keypoint_head.layers(x)[:-1])
        return tuple(outputs)

    # --- proposals -----------------------------------------------------------------------------------------

    def _proposals(self, features: dict[str, Tensor], limit: Tensor, image: Tensor) -> Tensor:
        rpn = self.model.proposal_generator
        logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
        cells, strides = rpn.anchor_generator.cell_anchors, rpn.anchor_generator.strides
        levels = []
        for level in zip(logits, deltas, cells, strides, strict=True):
            boxes, scores = self._most_likely(*level, image)
            finite = boxes.isfinite().all(dim=1) & scores.isfinite()
            boxes = _clipped(boxes, limit)
            large = (boxes[:, 2:] - boxes[:, :2] > rpn.min_box_size).all(dim=1)
            (rows,) = (finite & large).nonzero().unbind(1)
            boxes, scores = boxes[rows], scores[rows]
            keep = _kept(boxes, scores, rpn.nms_thresh)
            levels.append((boxes[keep], scores[keep]))
        boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
        return boxes[scores.sort(descending=True).indices[: rpn.post_nms_topk[False]]]

    def _most_likely(self, logits: Tensor, deltas: Tensor, cells: Tensor, stride: int, image: Tensor):
        """Boxes (N, 4) and logits (N,) of a level's N most likely anchors, from (1, A, H, W), (1, 4 A, H, W)."""
        rpn, (height, width) = self.model.proposal_generator, logits.shape[2:]
        count, offset = rpn.pre_nms_topk[False], rpn.anchor_generator.offset
        logits = logits[0].permute(1, 2, 0).flatten()
        deltas = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
        scores, index = F.pad(logits, (0, count), value=-torch.inf).topk(count)
        index = torch.where(scores.isfinite(), index, 0)  # what fills up lies behind the last anchor
        place = index // len(cells)
        row = place // width
        column = place - row * width
        if isinstance(rpn.anchor_generator, TorchvisionAnchorGenerator):
            # Of the filled up image, and rounded down, where a map was rounded up.
            x = (column + offset) * (image.shape[2] // width)
            centre = torch.stack([x, (row + offset) * (image.shape[1] // height)], dim=1)
        else:
            centre = (torch.stack([column, row], dim=1) + offset) * stride
        anchors = centre.repeat(1, 2) + cells[index % len(cells)]
        return rpn.box2box_transform.apply_deltas(deltas[index], anchors), scores

    # --- detections ----------------------------------------------------------------------------------------

    def _detections(self, features: dict[str, Tensor], proposals: Tensor, limit: Tensor):
        heads = self.model.roi_heads
        if isinstance(heads, CascadeROIHeads):
            stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
        else:
            # The stage that C4 models run on each RoI is part of their pooling.
            stages = [(_mean if self.is_c4 else heads.box_head, heads.box_predictor)]
        total: Any = 0.0
        boxes = proposals
        for index, (head, predictor) in enumerate(stages):
            boxes = _clipped(boxes, limit) if index > 0 else boxes
            logits, deltas = (y[:-1] for y in predictor(head(self._pool("box", features, boxes))))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
            total = total + (logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=-1))
        return _suppressed(boxes, total * (1.0 / len(stages)), predictor, limit)

    def _pool(self, head: str, features: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """RoI features of a head, and last those of one empty RoI: onnxruntime has no convolution of an empty batch."""
        heads = self.model.roi_heads
        if self.is_c4:
            return heads.res5(_pooled(heads.pooler, [features[name] for name in heads.in_features], boxes))
        maps = [features[name] for name in getattr(heads, f"{head}_in_features")]
        return _pooled(getattr(heads, f"{head}_pooler"), maps, boxes)


def _pooled(pooler: FusedROIPooler, maps: list[Tensor], boxes: Tensor) -> Tensor:
    return roi_align_pyramid(
        maps,
        F.pad(boxes, (1, 0, 0, 1)),  # all of image 0
        pooler.output_size,
        pooler.scales,
        pooler.sampling_ratio,
        pooler.aligned,
        pooler.mode,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )


def _scores_masks(mask_head: nn.Module) -> bool:
    return isinstance(mask_head, MaskScoringHead)


def _masks(head: Any, x: Tensor, scores: Tensor, classes: Tensor) -> list[Tensor]:
    """What a mask head makes of R + 1 RoIs, for the first R."""
    logits, classes = head.layers(x), F.pad(classes, (0, 1))
    network = head.mask_head if _scores_masks(head) else head
    log_odds = network.log_odds if isinstance(network, MaskHead) else mask_log_odds
    masks = log_odds(logits, classes)[:, None].sigmoid()
    if not _scores_masks(head):
        return [masks[:-1]]
    ious = head.mask_iou(x, masks).gather(1, classes[:, None])[:, 0].clamp(0, 1)
    return [masks[:-1], ious[:-1] * scores]


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=[2, 3])


def _clipped(boxes: Tensor, limit: Tensor) -> Tensor:
    return boxes.clamp(min=0).minimum(limit)


def _kept(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """`torchvision.ops.nms`, which torch.export believes to keep two boxes at least: so two without area, which
    nothing suppresses, come last. Their scores are finite: OpenVINO leaves out boxes of score -inf."""
    return nms(F.pad(boxes, (0, 0, 0, 2)), F.pad(scores, (0, 2), value=_LAST), threshold)[:-2]


def _apart(boxes: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Boxes moved so that those of different classes do not meet.

    This rounds them, and where classes lie in one line, boxes of the last most. So torchvision's batched_nms does
    it for up to 1000 candidates, and detectron2's answers depend on it. Beyond that it takes class by class: a
    square of classes comes as close to it as one suppression can.
    """
    side = F.pad(boxes.flatten(), (0, 1)).max() + 1
    line = (classes * side)[:, None]
    columns = math.isqrt(num_classes - 1) + 1
    row = classes // columns
    square = torch.stack([classes - row * columns, row], dim=1).repeat(1, 2) * side
    return boxes + torch.where(torch.ones_like(classes).sum() > _IN_LINE, square, line)


def _suppressed(boxes: Tensor, scores: Tensor, predictor: Any, limit: Tensor):
    """Boxes, scores and classes of the detections, from boxes (R, 4) or (R, 4 K), and scores (R, K + 1)."""
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1]  # the last is the background's
    passing = (scores > predictor.test_score_thresh) & finite[:, None]
    rows, classes = passing.nonzero().unbind(1)
    # Not -1, which ONNX cannot infer from no rows.
    boxes, scores = boxes.unflatten(1, (predictor.bbox_pred.out_features // 4, 4)), scores[rows, classes]
    boxes = _clipped(boxes[rows, 0] if boxes.shape[1] == 1 else boxes[rows, classes], limit)
    keep = _kept(_apart(boxes, classes, predictor.num_classes), scores, predictor.test_nms_thresh)
    if predictor.test_topk_per_image >= 0:
        keep = keep[: predictor.test_topk_per_image]
    return boxes[keep], scores[keep], classes[keep]
