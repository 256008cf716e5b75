"""Proposals and detections: the stock results, without work on boxes that cannot be among them."""

import torch
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes, Instances

from ...accel import MethodStep
from ...layers.detections import select_detections

__all__ = ["FastDetections", "FastProposals"]


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
    # The last score is the background's.
    found = select_detections(boxes, scores[:, :-1], image_size, score_thresh, nms_thresh, topk)
    instances = Instances(image_size)
    instances.pred_boxes = Boxes(found.boxes)
    instances.scores = found.scores
    instances.pred_classes = found.classes
    return instances, found.rows
