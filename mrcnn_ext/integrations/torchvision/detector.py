"""The detectors of torchvision, as `mrcnn_ext.accelerate` takes them."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, keypointrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes, resize_keypoints
from torchvision.ops import MultiScaleRoIAlign

from ...accel import (
    Framework,
    FusedModule,
    KernelPolicy,
    MethodStep,
    PredictedClassMasks,
    register_framework,
    replace_method,
)
from ...accel.fused_module import defines
from ...accel.mixed_precision import Float32Inputs
from ...layers.detections import select_detections
from ...ops.box_matching import match_boxes
from ...ops.keypoint_decoding import heatmaps_to_keypoints
from .mask_pasting import lazy_masks, paste_masks
from .poolers import FusedMultiScaleRoIAlign

__all__ = ["FusedRPN", "FusedRoIHeads", "FusedTransform", "Torchvision"]


class FusedRPN(FusedModule, RegionProposalNetwork):
    """torchvision's RegionProposalNetwork: only the anchors that reach non-maximum suppression become boxes."""

    def infer(
        self, images, features: dict[str, Tensor], targets=None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        objectness = objectness.view(len(anchors), -1)
        deltas = deltas.view(len(anchors), -1, 4)
        best, kept = [], []
        for level, offset in zip(objectness.split(counts, 1), _offsets(counts), strict=True):
            index = level.topk(min(self.pre_nms_top_n(), level.shape[1]), dim=1).indices
            best.append(index + offset)
            kept.append(index.shape[1])
        best = torch.cat(best, dim=1)
        rows = torch.arange(len(anchors), device=best.device)[:, None]
        proposals = self.box_coder.decode(
            deltas[rows, best].flatten(0, 1), [of[index] for of, index in zip(anchors, best, strict=True)]
        ).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, objectness[rows, best], images.image_sizes, kept)
        return boxes, {}


def _offsets(counts):
    return [sum(counts[:index]) for index in range(len(counts))]


class FusedRoIHeads(FusedModule, RoIHeads):
    """torchvision's RoIHeads: detections are selected, masks of the predicted classes made and keypoints decoded
    without work on what cannot be among the results.

    Args:
        original: whose forward is torchvision's.

    Attributes:
        fast_detections, fast_keypoints: whether to do so.
        class_masks: the end of the mask branch for the predicted class alone; None for torchvision's.
    """

    def __init__(self, original: RoIHeads):
        super().__init__(original)
        self.fast_detections = self.fast_keypoints = False
        self.class_masks: PredictedClassMasks | None = None

    def infer(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's RoIHeads: features, proposals (L_i, 4) -> a dict per image, and no losses."""
        pooled = self.box_roi_pool(features, proposals, image_shapes)
        predictions = self.box_predictor(self.box_head(pooled))
        if self.fast_detections:
            found = self._select(*predictions, proposals, image_shapes)
        else:
            found = self.postprocess_detections(*predictions, proposals, image_shapes)
        boxes, scores, labels = found
        results = [
            {"boxes": b, "labels": of, "scores": s} for b, of, s in zip(boxes, labels, scores, strict=True)
        ]
        if self.has_mask():
            self._add_masks(features, results, image_shapes)
        if self.has_keypoint():
            self._add_keypoints(features, results, image_shapes)
        return results, {}

    def _select(self, class_logits, box_regression, proposals, image_shapes):
        counts = [len(boxes) for boxes in proposals]
        boxes = self.box_coder.decode(box_regression, proposals)
        scores = F.softmax(class_logits, -1)
        found = [
            select_detections(
                some_boxes[:, 1:],  # class 0 is the background
                some_scores[:, 1:],
                image_size,
                self.score_thresh,
                self.nms_thresh,
                self.detections_per_img,
                min_size=1e-2,
            )
            for some_boxes, some_scores, image_size in zip(
                boxes.split(counts), scores.split(counts), image_shapes, strict=True
            )
        ]
        return (
            [image.boxes for image in found],
            [image.scores for image in found],
            [image.classes + 1 for image in found],
        )

    def _add_masks(self, features, results, image_shapes):
        pooled = self.mask_roi_pool(features, [image["boxes"] for image in results], image_shapes)
        labels = torch.cat([image["labels"] for image in results])
        x = self.mask_head(pooled)
        if self.class_masks is not None:
            masks = self.class_masks(x, labels)
        else:
            masks = self.mask_predictor(x)
            masks = masks[torch.arange(len(masks), device=masks.device), labels][:, None]
        for image, probabilities in zip(
            results, masks.sigmoid().split([len(image["boxes"]) for image in results]), strict=True
        ):
            image["masks"] = probabilities

    def _add_keypoints(self, features, results, image_shapes):
        boxes = [image["boxes"] for image in results]
        pooled = self.keypoint_roi_pool(features, boxes, image_shapes)
        heatmaps = self.keypoint_predictor(self.keypoint_head(pooled))
        if self.fast_keypoints:
            decoded = heatmaps_to_keypoints(heatmaps, torch.cat(boxes)).split([len(b) for b in boxes])
            # torchvision's third number is 1 for every keypoint, its score the logit.
            keypoints = [
                torch.cat([points[..., :2], torch.ones_like(points[..., :1])], -1) for points in decoded
            ]
            scores = [points[..., 2] for points in decoded]
        else:
            keypoints, scores = keypointrcnn_inference(heatmaps, boxes)
        for image, points, logits in zip(results, keypoints, scores, strict=True):
            image["keypoints"], image["keypoints_scores"] = points, logits


class FusedTransform(FusedModule, GeneralizedRCNNTransform):
    """torchvision's GeneralizedRCNNTransform; masks are pasted within their boxes, or when they are looked at.

    Args:
        original: whose ``postprocess`` is torchvision's.
        lazy: whether "masks" is a `LazyMasks` (N, height, width), at 0.5, instead of probabilities
            (N, 1, height, width).
    """

    def __init__(self, original: GeneralizedRCNNTransform, lazy: bool):
        super().__init__(original)
        self.lazy = lazy

    def infer(self, images, targets=None):
        return self.original.forward(images, targets)

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """As torchvision's: results at the size of the original images."""
        if self.training:
            return result
        paste = lazy_masks if self.lazy else paste_masks
        for image, size, wanted in zip(result, image_shapes, original_image_sizes, strict=True):
            image["boxes"] = resize_boxes(image["boxes"], size, wanted)
            if "masks" in image:
                image["masks"] = paste(image["masks"], image["boxes"], tuple(wanted))
            if "keypoints" in image:
                image["keypoints"] = resize_keypoints(image["keypoints"], size, wanted)
        return result

    def extra_repr(self) -> str:
        return f"masks pasted {'when looked at' if self.lazy else 'within their boxes'}"


class Torchvision(Framework):
    """torchvision's GeneralizedRCNN: FasterRCNN, MaskRCNN, KeypointRCNN."""

    model_class = GeneralizedRCNN
    name = "torchvision's GeneralizedRCNN (FasterRCNN, MaskRCNN, KeypointRCNN)"

    def networks(self, model: GeneralizedRCNN) -> Iterator[tuple[str, nn.Module, bool]]:
        yield "backbone", model.backbone, False
        if hasattr(model.rpn, "head"):
            yield "rpn.head", model.rpn.head, True
        for name, child in list(model.roi_heads.named_children()):
            if name != "box_predictor" and next(child.parameters(), None) is not None:
                yield f"roi_heads.{name}", child, True

    def fuse_poolers(self, model: GeneralizedRCNN) -> str:
        poolers = {}
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if type(module) is MultiScaleRoIAlign:
                fused = poolers.setdefault(module, _fused_pooler(module))  # heads may share one
                model.set_submodule(name, fused)
        return f"{len(poolers)} replaced"

    def fuse_between(self, model: GeneralizedRCNN, policy: KernelPolicy) -> None:
        heads = self._fused_heads(model)
        predictor = getattr(model.roi_heads, "mask_predictor", None)
        predictor = predictor.original if isinstance(predictor, FusedModule) else predictor
        if heads is not None and defines(predictor, MaskRCNNPredictor, "forward"):
            layers = (predictor.conv5_mask, predictor.mask_fcn_logits)
            heads.class_masks = PredictedClassMasks(*layers, policy)

    def keep_float32(self, model: GeneralizedRCNN) -> None:
        predictor = getattr(model.roi_heads, "box_predictor", None)
        if predictor is not None:
            replace_method(Float32Inputs(predictor, "forward"))

    def postprocesses_as_stock(self, model: nn.Module) -> bool:
        return defines(model, GeneralizedRCNN, "forward") and defines(
            model.transform, GeneralizedRCNNTransform, "postprocess"
        )

    def detections(self, model: GeneralizedRCNN) -> str:
        done = []
        if defines(model.rpn, RegionProposalNetwork, "forward", "filter_proposals"):
            model.rpn = FusedRPN.from_module(model.rpn)
            done.append("proposals")
        heads = self._fused_heads(model)
        if heads is not None and defines(heads.original, RoIHeads, "postprocess_detections"):
            heads.fast_detections = True
            done.append("detections")
        return ", ".join(done) or "nothing known here"

    def keypoints(self, model: GeneralizedRCNN) -> str:
        if getattr(model.roi_heads, "keypoint_head", None) is None:
            return "no keypoint head"
        heads = self._fused_heads(model)
        if heads is None:
            return f"left alone: {type(model.roi_heads).__name__} decodes its own"
        heads.fast_keypoints = True
        return "decoded at once"

    def masks(self, model: GeneralizedRCNN, lazy: bool) -> str:
        if not self.postprocesses_as_stock(model):
            return f"left alone: {type(model).__name__} has post-processing of its own"
        model.transform = FusedTransform.from_module(model.transform, lazy)
        return "pasted when looked at" if lazy else "pasted within their boxes"

    def targets(self, model: GeneralizedRCNN) -> str:
        if not defines(model.rpn, RegionProposalNetwork, "forward", "assign_targets_to_anchors"):
            return "nothing known here"
        replace_method(_AnchorTargets(model.rpn, "assign_targets_to_anchors"))
        return "anchors matched in blocks"

    def _fused_heads(self, model) -> FusedRoIHeads | None:
        if not isinstance(model.roi_heads, FusedRoIHeads):
            if not defines(model.roi_heads, RoIHeads, "forward"):
                return None
            model.roi_heads = FusedRoIHeads.from_module(model.roi_heads)
        return model.roi_heads


class _AnchorTargets(MethodStep):
    """Of RegionProposalNetwork: anchors are matched without the matrix of all overlaps."""

    def __call__(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        matched = [self._match(some, target["boxes"]) for some, target in zip(anchors, targets, strict=True)]
        return [labels for labels, _ in matched], [boxes for _, boxes in matched]

    def _match(self, anchors, boxes):
        """Labels (A,) float32: 1 object, 0 background, -1 neither; and the box of each anchor (A, 4)."""
        if len(boxes) == 0:
            return anchors.new_zeros(len(anchors), dtype=torch.float32), torch.zeros_like(anchors)
        matcher, matches = self.module.proposal_matcher, match_boxes(anchors, boxes.to(anchors.dtype))
        labels = (matches.overlaps >= matcher.high_threshold).float()
        between = (matches.overlaps >= matcher.low_threshold) & (matches.overlaps < matcher.high_threshold)
        labels[between] = -1
        if matcher.allow_low_quality_matches:
            labels[matches.best] = 1
        targets = torch.where(labels == 1, matches.targets, 0)
        return labels, boxes[targets]


def _fused_pooler(pooler: MultiScaleRoIAlign) -> FusedMultiScaleRoIAlign:
    return FusedMultiScaleRoIAlign(
        pooler.featmap_names,
        pooler.output_size,
        pooler.sampling_ratio,
        canonical_scale=pooler.canonical_scale,
        canonical_level=pooler.canonical_level,
    )


register_framework(Torchvision())
