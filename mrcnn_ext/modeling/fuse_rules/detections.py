"""Proposals and detections: the stock results, without work on boxes that cannot be among them."""

import torch
from detectron2.layers import batched_nms, cat
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances
from torchvision.ops import nms

from ...accel import MethodStep

__all__ = ["FastDetections", "FastProposals"]

# From so many coordinates on torchvision's batched_nms takes class by class on the CPU. Below it moves the boxes
# of each class apart instead, which rounds them.
_CLASS_BY_CLASS = 4000


class FastProposals(MethodStep):
    """``predict_proposals`` of RPN: only the anchors that reach non-maximum suppression are turned into boxes."""

    def __call__(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        if self.module.training:
            return self.stock(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        with torch.no_grad():
            return self._best_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)

    def _best_proposals(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        rpn, logits, proposals = self.module, [], []
        for level, all_logits, all_deltas in zip(
            anchors, pred_objectness_logits, pred_anchor_deltas, strict=True
        ):
            count = min(all_logits.shape[1], rpn.pre_nms_topk[False])
            top, index = all_logits.topk(count, dim=1)
            deltas = all_deltas.gather(1, index[..., None].expand(-1, -1, all_deltas.shape[2]))
            boxes = rpn.box2box_transform.apply_deltas(deltas.flatten(0, 1), level.tensor[index.flatten()])
            logits.append(top)
            proposals.append(boxes.view(len(top), count, -1))
        return find_top_rpn_proposals(
            proposals,
            logits,
            image_sizes,
            rpn.nms_thresh,
            rpn.pre_nms_topk[False],
            rpn.post_nms_topk[False],
            rpn.min_box_size,
            False,
        )


class FastDetections(MethodStep):
    """``inference`` of FastRCNNOutputLayers: suppression sees no more boxes than it takes to fill an image."""

    def __call__(self, predictions, proposals):
        layers = self.module
        if layers.training:
            return self.stock(predictions, proposals)
        results = [
            _detections(*image, layers.test_score_thresh, layers.test_nms_thresh, layers.test_topk_per_image)
            for image in zip(
                layers.predict_boxes(predictions, proposals),
                layers.predict_probs(predictions, proposals),
                [image.image_size for image in proposals],
                strict=True,
            )
        ]
        return [instances for instances, _ in results], [rows for _, rows in results]


def _detections(boxes, scores, image_size, score_thresh, nms_thresh, topk):
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    if not finite.all():
        boxes, scores = boxes[finite], scores[finite]
    scores = scores[:, :-1]  # the last is the background's
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
        candidates = boxes.view(len(boxes), boxes.shape[1] // 4, 4)
        candidates = Boxes(candidates[rows, 0 if candidates.shape[1] == 1 else classes])
        candidates.clip(image_size)
        suppress = _nms_class_by_class if class_by_class else batched_nms
        keep = suppress(candidates.tensor, scores[chosen], classes, nms_thresh)
        if wanted >= count or len(keep) >= topk:
            break
        wanted *= 4
    if topk >= 0:
        keep = keep[:topk]
    instances = Instances(image_size)
    instances.pred_boxes = candidates[keep]
    instances.scores = scores[chosen][keep]
    instances.pred_classes = classes[keep]
    return instances, rows[keep]


def _nms_class_by_class(boxes, scores, classes, threshold):
    kept = []
    for index in classes.unique():
        members = (classes == index).nonzero()[:, 0]
        kept.append(members[nms(boxes[members], scores[members], threshold)])
    kept = cat(kept).sort().values
    return kept[scores[kept].sort(descending=True).indices]
