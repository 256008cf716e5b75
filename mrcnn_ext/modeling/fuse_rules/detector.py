"""The detectors of detectron2, as `mrcnn_ext.accelerate` takes them."""

from collections.abc import Iterator

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import GeneralizedRCNN, SimpleFeaturePyramid
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn
from torchvision.ops import RoIPool

from ...accel import ConvNorm, Framework, register_framework, replace_child, replace_method
from ...accel.cuda_graphs import GraphedCalls
from ...accel.fused_module import defines, original_of
from ...accel.mixed_precision import AutocastMethod, AutocastNetwork, Float32Inputs
from ..keypoint_head import KeypointHead, TemporalKeypointHead
from ..poolers import FusedROIPooler
from .backbones import residual_blocks, stems
from .calibration import images_of_dataset
from .detections import CachedAnchors, FastDetections, FastProposals, can_pad_proposals
from .heads import TrainedClassMasks, trained_rpn_head
from .outputs import FastKeypoints, FastOutputs
from .training_targets import make_targets_fast

__all__ = ["Detectron2"]


class Detectron2(Framework):
    """detectron2's GeneralizedRCNN and its subclasses, whose own forward stays."""

    model_class = GeneralizedRCNN
    name = "detectron2's GeneralizedRCNN (Faster, Mask, Keypoint, Cascade R-CNN)"

    def networks(self, model: GeneralizedRCNN) -> Iterator[tuple[str, nn.Module, bool]]:
        if isinstance(model.backbone, FPN):
            yield "backbone.bottom_up", model.backbone.bottom_up, False
        if isinstance(model.backbone, SimpleFeaturePyramid):
            yield "backbone.net", model.backbone.net, False
        yield "backbone", model.backbone, False
        if hasattr(model.proposal_generator, "rpn_head"):
            yield "proposal_generator.rpn_head", model.proposal_generator.rpn_head, True
        for name, child in list(model.named_children()):  # of subclasses: PanopticFPN's sem_seg_head
            if name not in ("backbone", "proposal_generator", "roi_heads"):
                yield name, child, True
        predictors = {predictor for _, predictor in _parts(model.roi_heads, "box_predictor")}
        for name in list(model.roi_heads._modules):
            for index, part in _parts(model.roi_heads, name):
                if next(part.parameters(), None) is not None and part not in predictors:
                    yield f"roi_heads.{index}", part, name != "res5"

    def inputs_of_dataset(self, model: GeneralizedRCNN, name: str) -> list:
        return images_of_dataset(model, name)

    def fuse_poolers(self, model: GeneralizedRCNN) -> str:
        poolers, left = {}, []
        for name, module in list(model.named_modules(remove_duplicate=False)):
            if type(module) is not ROIPooler:
                continue
            fused = poolers.setdefault(module, _fused_pooler(module))  # heads may share one
            if fused is None:
                left.append(name)
            else:
                model.set_submodule(name, fused)
        return f"{sum(fused is not None for fused in poolers.values())} replaced" + (
            f"; left alone: {', '.join(left)}" if left else ""
        )

    def autocast(self, network: nn.Module, is_head: bool, dtype: torch.dtype) -> nn.Module:
        if isinstance(network, (BaseMaskRCNNHead, BaseKeypointRCNNHead)):
            replace_method(AutocastMethod(network, "layers", dtype))
            return network
        return AutocastNetwork(network, float32=is_head, dtype=dtype)

    def keep_float32(self, model: GeneralizedRCNN) -> None:
        predictors = [predictor for _, predictor in _parts(model.roi_heads, "box_predictor")]
        poolers = [module for module in model.modules() if isinstance(module, ROIPooler)]
        for module in [*predictors, *poolers]:
            replace_method(Float32Inputs(module, "forward"))

    def postprocesses_as_stock(self, model: nn.Module) -> bool:
        return isinstance(model, GeneralizedRCNN) and all(
            getattr(type(model), method) is getattr(GeneralizedRCNN, method)
            for method in ("inference", "_postprocess")
        )

    def detections(self, model: GeneralizedRCNN) -> str:
        done = []
        if defines(model.proposal_generator, RPN, "forward", "predict_proposals", "_decode_proposals"):
            replace_method(FastProposals(model.proposal_generator, "predict_proposals"))
            done.append("proposals")
        # A cascade has several predictors, whose scores it averages.
        predictor = getattr(model.roi_heads, "box_predictor", None)
        if defines(predictor, FastRCNNOutputLayers, "inference"):
            replace_method(FastDetections(predictor, "inference"))
            done.append("detections")
        _keep_anchors(model.proposal_generator)
        return ", ".join(done) or "nothing known here"

    def keypoints(self, model: GeneralizedRCNN) -> str:
        head = getattr(model.roi_heads, "keypoint_head", None)
        if head is None:
            return "no keypoint head"
        if isinstance(head, KeypointHead) and defines(head, KeypointHead, "forward", "decode"):
            return f"decoded at once by {type(head).__name__} itself"
        if not defines(head, BaseKeypointRCNNHead, "forward"):
            return f"left alone: {type(head).__name__} decodes its own"
        replace_method(FastKeypoints(head, "forward"))
        return "decoded at once"

    def masks(self, model: GeneralizedRCNN, lazy: bool) -> str:
        if not self.postprocesses_as_stock(model):
            return f"left alone: {type(model).__name__} has post-processing of its own"
        replace_method(FastOutputs(model, "lazy" if lazy else "paste"))
        return "pasted when looked at" if lazy else "pasted within their boxes"

    def why_not_padded(self, model: GeneralizedRCNN) -> str | None:
        rpn, heads = original_of(model.proposal_generator), model.roi_heads
        if not self.postprocesses_as_stock(model):
            return f"{type(model).__name__} has post-processing of its own"
        if not defines(rpn, RPN, "forward", "predict_proposals", "_decode_proposals"):
            return f"the proposals of {type(rpn).__name__} are its own"
        if not can_pad_proposals(rpn):
            return f"the RPN takes {rpn.pre_nms_topk[False]} anchors of a level to non-maximum suppression"
        return _why_not_padded(heads)

    def pad(self, model: GeneralizedRCNN) -> None:
        outputs = model.__dict__.get("inference")
        if not isinstance(outputs, FastOutputs):
            outputs = FastOutputs(model, "stock")
            replace_method(outputs)
        outputs.padded = True
        _keep_anchors(model.proposal_generator)

    def launch_at_once(self, model: GeneralizedRCNN) -> None:
        outputs = model.inference
        assert isinstance(outputs, FastOutputs)  # `pad` has seen to it
        outputs.graphs = GraphedCalls(model, type(model).__name__, " as a whole")

    def networks_of_fixed_shapes(
        self, model: GeneralizedRCNN, padded: bool
    ) -> Iterator[tuple[str, nn.Module]]:
        yield "backbone", model.backbone
        if hasattr(model.proposal_generator, "rpn_head"):
            yield "proposal_generator.rpn_head", model.proposal_generator.rpn_head
        if padded:
            yield "roi_heads.box_head", model.roi_heads.box_head

    def residual_blocks(self, model: nn.Module) -> Iterator[tuple[str, list[ConvNorm], ConvNorm | None]]:
        return residual_blocks(model)

    def stems(self, model: nn.Module) -> Iterator[tuple[str, ConvNorm]]:
        return stems(model)

    def train_heads(self, model: GeneralizedRCNN) -> str:
        done = []
        trained = trained_rpn_head(getattr(model.proposal_generator, "rpn_head", None))
        if trained is not None:
            replace_child(model.proposal_generator, "rpn_head", trained)
            done.append("the RPN head backward at sampled anchors")
        mask_head = getattr(model.roi_heads, "mask_head", None)
        if TrainedClassMasks.serves(mask_head):
            replace_method(TrainedClassMasks(mask_head))
            done.append("masks of one class each")
        return ", ".join(done)

    def targets(self, model: GeneralizedRCNN) -> str:
        return ", ".join(make_targets_fast(model)) or "nothing known here"


def _why_not_padded(heads: ROIHeads) -> str | None:
    """Why ROI heads cannot take padding, which they must not look at RoI by RoI with others; None if they can."""
    methods = ("forward", "_forward_box", "forward_with_given_boxes", "_forward_mask", "_forward_keypoint")
    if not (vars(type(heads)).get("takes_padding") or defines(heads, StandardROIHeads, *methods)):
        return f"{type(heads).__name__} is neither StandardROIHeads nor says `takes_padding = True`"
    known = (
        ("box_head", FastRCNNConvFCHead, ("forward",)),
        ("box_predictor", FastRCNNOutputLayers, ("forward", "inference", "predict_boxes", "predict_probs")),
        ("mask_head", BaseMaskRCNNHead, ()),
        ("keypoint_head", BaseKeypointRCNNHead, ()),
    )
    for name, cls, methods in known:
        part = original_of(getattr(heads, name, None))
        if part is not None and not defines(part, cls, *methods):
            return f"{name} is a {type(part).__name__}"
    if isinstance(getattr(heads, "keypoint_head", None), TemporalKeypointHead):
        return "keypoint_head follows the objects that are found from frame to frame"
    if heads.box_predictor.test_topk_per_image < 0:
        return "there may be any number of detections"
    return None


def _keep_anchors(generator: nn.Module) -> None:
    anchors = getattr(generator, "anchor_generator", None)
    if defines(anchors, DefaultAnchorGenerator, "forward", "_grid_anchors"):
        replace_method(CachedAnchors(anchors))


def _parts(roi_heads, name):
    """Name and module of a child of ROI heads, or of each of its children where it is a list of several stages'."""
    child = getattr(roi_heads, name, None)
    if isinstance(child, nn.ModuleList):
        return [(f"{name}.{index}", part) for index, part in child.named_children()]
    return [] if child is None else [(name, child)]


def _fused_pooler(pooler: ROIPooler) -> FusedROIPooler | None:
    levels = list(pooler.level_poolers)
    if all(type(level) is ROIAlign for level in levels):
        kind, sampling_ratio = ("ROIAlignV2" if levels[0].aligned else "ROIAlign"), levels[0].sampling_ratio
    elif all(type(level) is RoIPool for level in levels):
        kind, sampling_ratio = "ROIPool", 0
    else:  # rotated boxes, or somebody else's
        return None
    scales = [level.spatial_scale for level in levels]
    canonical = (pooler.canonical_box_size, pooler.canonical_level)
    return FusedROIPooler(tuple(pooler.output_size), scales, sampling_ratio, kind, *canonical)


register_framework(Detectron2())
