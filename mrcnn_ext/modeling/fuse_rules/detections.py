"""Proposals and detections: the stock results, without work on boxes that cannot be among them."""

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances

from ...accel import MethodStep
from ...accel.padding import padded_results
from ...layers.detections import select_detections
from ...layers.padded_detections import is_padding, pad_detections, pad_proposals
from ...ops.detections import can_propose, rpn_proposals

__all__ = ["CachedAnchors", "FastDetections", "FastProposals", "can_pad_proposals"]

_LARGEST_GROUP = 2048  # boxes of which each is compared with each at once
_SHAPES = 8  # of feature maps, for which anchors are kept


def can_pad_proposals(rpn: RPN) -> bool:
    """Whether an RPN takes no more anchors of a level to non-maximum suppression than can be compared at once."""
    return rpn.pre_nms_topk[False] <= _LARGEST_GROUP


class CachedAnchors(MethodStep):
    """``forward`` of an anchor generator: the anchors of feature maps of the same shapes are made once. To make them
    copies numbers to the device, for each level."""

    def __init__(self, module: torch.nn.Module):
        super().__init__(module, "forward")
        self.made = {}

    def __call__(self, features: list[torch.Tensor]) -> list[Boxes]:
        # Tensors of inference mode are of no use in training.
        setting = (features[0].device, torch.is_inference_mode_enabled())
        key = (*(tuple(level.shape[-2:]) for level in features), *setting)
        made = dict(self.made)  # replaced at once, for the sake of other threads
        anchors = made.pop(key, None)
        if anchors is None:
            anchors = self.stock(features)
        made[key] = anchors  # the last one used
        while len(made) > _SHAPES:
            del made[next(iter(made))]
        self.made = made
        return list(anchors)

    def __getstate__(self):
        return {**self.__dict__, "made": {}}


class FastProposals(MethodStep):
    """``predict_proposals`` of RPN: only the anchors that reach non-maximum suppression are turned into boxes; on the
    CPU by one operator, in training too."""

    @torch.no_grad()
    def __call__(self, anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes):
        predictions = (anchors, pred_objectness_logits, pred_anchor_deltas)
        if padded_results() is None and self._runs_in_one(*predictions):
            return self._in_one(*predictions, image_sizes)
        if self.module.training:
            return self.stock(*predictions, image_sizes)
        return self._best_proposals(*predictions, image_sizes)

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
        padded = padded_results()
        if padded is not None:
            return self._padded(padded, proposals, logits, image_sizes)
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

    def _runs_in_one(self, anchors, logits, deltas):
        rpn = self.module
        return type(rpn.box2box_transform) is Box2BoxTransform and can_propose(
            logits, deltas, [level.tensor for level in anchors], rpn.nms_thresh
        )

    def _in_one(self, anchors, logits, deltas, image_sizes):
        rpn = self.module
        found = rpn_proposals(
            logits,
            deltas,
            [level.tensor for level in anchors],
            image_sizes,
            rpn.box2box_transform.weights,
            rpn.box2box_transform.scale_clamp,
            rpn.nms_thresh,
            rpn.pre_nms_topk[rpn.training],
            rpn.post_nms_topk[rpn.training],
            rpn.min_box_size,
            drop_not_finite=not rpn.training,
        )
        return [
            Instances(image_size, proposal_boxes=Boxes(boxes), objectness_logits=of)
            for image_size, boxes, of in zip(image_sizes, *found, strict=True)
        ]

    def _padded(self, padded, proposals, logits, image_sizes):
        rpn = self.module
        found = pad_proposals(
            proposals, logits, image_sizes, rpn.nms_thresh, rpn.post_nms_topk[False], rpn.min_box_size
        )
        padded.expect(found.exact)
        return [
            Instances(image_size, proposal_boxes=Boxes(boxes), objectness_logits=of)
            for image_size, boxes, of in zip(image_sizes, found.boxes, found.logits, strict=True)
        ]


class FastDetections(MethodStep):
    """``inference`` of FastRCNNOutputLayers: suppression sees no more boxes than it takes to fill an image."""

    def __call__(self, predictions, proposals):
        layers = self.module
        if layers.training:
            return self.stock(predictions, proposals)
        padded = padded_results()
        if padded is not None:
            return self._padded(padded, predictions, proposals)
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

    def _padded(self, padded, predictions, proposals):
        layers, image_sizes = self.module, [image.image_size for image in proposals]
        found = pad_detections(
            torch.stack(layers.predict_boxes(predictions, proposals)),
            torch.stack(layers.predict_probs(predictions, proposals))[..., :-1],  # without the background's
            torch.stack([~is_padding(image.objectness_logits) for image in proposals]),
            image_sizes,
            layers.test_score_thresh,
            layers.test_nms_thresh,
            layers.test_topk_per_image,
        )
        padded.expect(found.exact)
        instances = [
            Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
            for image_size, boxes, scores, classes in zip(image_sizes, *found[:3], strict=True)
        ]
        return instances, list(found.rows)


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
