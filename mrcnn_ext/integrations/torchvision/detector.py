"""The detectors of torchvision, as `mrcnn_ext.accelerate` takes them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import (
    RoIHeads,
    keypointrcnn_inference,
    paste_masks_in_image,
)
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform
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
from ...accel.cuda_graphs import GraphedCalls
from ...accel.fused_module import defines, original_of
from ...accel.mixed_precision import Float32Inputs
from ...accel.padding import padded_results, run_padded, run_part_as_graph
from ...layers.detections import select_detections
from ...layers.padded_detections import is_padding, pad_detections, pad_proposals
from ...ops.box_matching import match_boxes
from ...ops.keypoint_decoding import heatmaps_to_keypoints
from .mask_pasting import lazy_masks, paste_masks
from .poolers import FusedMultiScaleRoIAlign

__all__ = ["FusedRPN", "FusedRoIHeads", "FusedTransform", "Torchvision"]


_SMALLEST = 1e-2  # side of a detection
_LARGEST_GROUP = 2048  # boxes of which each is compared with each at once


def _decoded(coder: BoxCoder, codes: Tensor, boxes: Tensor) -> Tensor:
    """``BoxCoder.decode`` of codes (R, 4 K) for boxes (R, 4), which copies a constant to the device and waits for it:
    (R, K, 4)."""
    codes, boxes = codes.view(len(boxes), -1, 4), boxes[:, None].to(codes.dtype)
    sides = boxes[..., 2:] - boxes[..., :2]
    x, y, width, height = (codes[..., i] / weight for i, weight in enumerate(coder.weights))
    centres = torch.stack([x, y], -1) * sides + (boxes[..., :2] + 0.5 * sides)
    half = 0.5 * (torch.stack([width, height], -1).clamp(max=coder.bbox_xform_clip).exp() * sides)
    return torch.cat([centres - half, centres + half], -1)


def _scaled(values: Tensor, *factors: float) -> Tensor:
    """Each number of the last axis times its factor."""
    return torch.stack([value * by for value, by in zip(values.unbind(-1), factors, strict=True)], -1)


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
        padded = padded_results()
        if padded is not None:
            anchors = torch.stack(anchors).gather(1, best[..., None].expand(-1, -1, 4))
            boxes = _decoded(self.box_coder, deltas[rows, best].flatten(0, 1), anchors.flatten(0, 1))
            boxes = boxes.view(len(anchors), -1, 4)
            return self._padded(padded, boxes, objectness[rows, best], images.image_sizes, kept), {}
        proposals = self.box_coder.decode(
            deltas[rows, best].flatten(0, 1), [of[index] for of, index in zip(anchors, best, strict=True)]
        ).view(len(anchors), -1, 4)
        boxes, _ = self.filter_proposals(proposals, objectness[rows, best], images.image_sizes, kept)
        return boxes, {}

    def _padded(self, padded, boxes, objectness, image_sizes, counts):
        found = pad_proposals(
            boxes.split(counts, 1),
            objectness.sigmoid().split(counts, 1),
            image_sizes,
            self.nms_thresh,
            self.post_nms_top_n(),
            self.min_size,
            smallest=True,
            lowest=self.score_thresh,
        )
        padded.expect(found.exact)
        padded.proposals = ~is_padding(found.logits)
        return list(found.boxes)


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
        padded = padded_results()
        if padded is not None:
            return self._select_padded(padded, class_logits, box_regression, proposals, image_shapes)
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
                min_size=_SMALLEST,
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

    def _select_padded(self, padded, class_logits, box_regression, proposals, image_shapes):
        images = len(proposals)
        boxes = _decoded(self.box_coder, box_regression, torch.cat(proposals))
        scores = F.softmax(class_logits, -1)
        found = pad_detections(
            boxes.view(images, -1, *boxes.shape[1:])[:, :, 1:],
            scores.view(images, -1, scores.shape[1])[:, :, 1:],
            padded.proposals,
            image_shapes,
            self.score_thresh,
            self.nms_thresh,
            self.detections_per_img,
            min_size=_SMALLEST,
        )
        padded.expect(found.exact)
        return list(found.boxes), list(found.scores), list(found.classes + 1)

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
        stock_masks: whether torchvision pastes them after all.
    """

    def __init__(self, original: GeneralizedRCNNTransform, lazy: bool, stock_masks: bool = False):
        super().__init__(original)
        self.lazy, self.stock_masks = lazy, stock_masks

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
        if self.stock_masks:
            paste = paste_masks_in_image
        padded = padded_results()
        if padded is not None:
            places = padded.found_by_scores([image["scores"] for image in result])
            result = [
                {name: value[some] for name, value in image.items()}
                for image, some in zip(result, places, strict=True)
            ]
        for image, size, wanted in zip(result, image_shapes, original_image_sizes, strict=True):
            # In float32, as torchvision, which copies the sizes to the device.
            y, x = (float(np.float32(new) / np.float32(old)) for old, new in zip(size, wanted, strict=True))
            image["boxes"] = _scaled(image["boxes"], x, y, x, y)
            if "masks" in image:
                image["masks"] = paste(image["masks"], image["boxes"], tuple(wanted))
            if "keypoints" in image:
                image["keypoints"] = _scaled(image["keypoints"], x, y, 1)
        return result

    def extra_repr(self) -> str:
        how = (
            "by torchvision" if self.stock_masks else "when looked at" if self.lazy else "within their boxes"
        )
        return f"masks pasted {how}"


class _PaddedForward(MethodStep):
    """``forward`` of GeneralizedRCNN, between whose steps proposals and detections are padded.

    Attributes:
        graphs: launches all steps between the batch of images and the padded results at once; None to call each.
    """

    def __init__(self, module: GeneralizedRCNN):
        super().__init__(module, "forward")
        self.graphs: GraphedCalls | None = None

    def __call__(self, images, targets=None):
        if self.module.training:
            return self.stock(images, targets)

        def run():
            if self.graphs is None or padded_results() is None:
                return self.stock(images, targets)
            return self._at_once(images)

        return run_padded(run)

    def _at_once(self, images):
        """What GeneralizedRCNN's ``forward`` does in evaluation mode."""
        model = self.module
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        batch, _ = model.transform(images, None)
        sizes = [tuple(size) for size in batch.image_sizes]

        def detect(tensors):
            features = model.backbone(tensors)
            if isinstance(features, Tensor):
                features = {"0": features}
            proposals, _ = model.rpn(ImageList(tensors, sizes), features, None)
            return model.roi_heads(features, proposals, sizes, None)[0]

        results = run_part_as_graph(self.graphs, detect, batch.tensors, tuple(sizes))
        return model.transform.postprocess(results, sizes, original_sizes)


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
            original_of(model.transform), GeneralizedRCNNTransform, "postprocess"
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

    def why_not_padded(self, model: GeneralizedRCNN) -> str | None:
        rpn, heads = original_of(model.rpn), original_of(model.roi_heads)
        if not self.postprocesses_as_stock(model):
            return f"{type(model).__name__} has post-processing of its own"
        if not defines(rpn, RegionProposalNetwork, "forward", "filter_proposals"):
            return f"the proposals of {type(rpn).__name__} are its own"
        if rpn._pre_nms_top_n["testing"] > _LARGEST_GROUP:
            anchors = rpn._pre_nms_top_n["testing"]
            return f"the RPN takes {anchors} anchors of a level to non-maximum suppression"
        if not defines(heads, RoIHeads, "forward", "postprocess_detections"):
            return f"{type(heads).__name__} selects detections of its own"
        box_head = original_of(heads.box_head)
        if not isinstance(box_head, (TwoMLPHead, FastRCNNConvFCHead)):
            return f"box_head is a {type(box_head).__name__}"
        if not type(rpn.box_coder) is type(heads.box_coder) is BoxCoder:
            return "boxes are not coded by torchvision's BoxCoder"
        return None

    def pad(self, model: GeneralizedRCNN) -> None:
        if not isinstance(model.transform, FusedTransform):
            model.transform = FusedTransform.from_module(model.transform, False, stock_masks=True)
        replace_method(_PaddedForward(model))

    def launch_at_once(self, model: GeneralizedRCNN) -> None:
        forward = model.forward
        assert isinstance(forward, _PaddedForward)  # `pad` has seen to it
        forward.graphs = GraphedCalls(model, type(model).__name__, " as a whole")

    def networks_of_fixed_shapes(
        self, model: GeneralizedRCNN, padded: bool
    ) -> Iterator[tuple[str, nn.Module]]:
        yield "backbone", model.backbone
        yield "rpn.head", model.rpn.head
        for name in ("box_head", "mask_head", "keypoint_head", "keypoint_predictor") if padded else ():
            network = getattr(model.roi_heads, name, None)
            if network is not None:
                yield f"roi_heads.{name}", network

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
