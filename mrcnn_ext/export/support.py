"""What can be exported. Whatever would change the answers without `Detector` knowing is refused by name."""

from typing import Any

from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from torch import nn

from ..accel.fused_module import defines
from ..modeling import (
    FusedCascadeROIHeads,
    FusedRes5ROIHeads,
    FusedROIHeads,
    FusedROIPooler,
    KeypointHead,
    TorchvisionAnchorGenerator,
)
from ..modeling.mask_head import MaskHead, MaskScoringHead

__all__ = ["check_exportable"]

_INFERENCE = ("forward", "forward_with_given_boxes")
_HEADS = ("_forward_box", "_forward_mask", "_forward_keypoint")
# ROI heads, and the methods which a subclass may not have changed
_ROI_HEADS = (
    (FusedROIHeads, (*_INFERENCE, *_HEADS)),
    (FusedCascadeROIHeads, (*_INFERENCE, *_HEADS, "_run_stage")),
    (FusedRes5ROIHeads, (*_INFERENCE, "_shared_roi_transform")),
    (CascadeROIHeads, (*_INFERENCE, *_HEADS, "_run_stage")),
    (StandardROIHeads, (*_INFERENCE, *_HEADS)),
    (Res5ROIHeads, (*_INFERENCE, "_shared_roi_transform")),
)


def check_exportable(model: Any, format: str) -> None:
    """
    Args:
        model: a GeneralizedRCNN whose poolers are `FusedROIPooler`s where these can take their place.
        format: "torchscript", "torch_export" or "onnx".

    Raises:
        NotImplementedError: a part of the model has no export to this format; the message names it.
    """
    if not defines(model, GeneralizedRCNN, "forward", "inference", "preprocess_image"):
        _refuse(model, "only detectron2's GeneralizedRCNN has: Faster, Mask, Keypoint and Cascade R-CNN")
    constraints = model.backbone.padding_constraints or {}
    if constraints.get("square_size", 0) > 0:
        _refuse(model.backbone, "it takes square images of one size only")
    for module in model.modules():
        if isinstance(module, (DeformConv, ModulatedDeformConv)):
            _refuse(module, "it is no operator of PyTorch's")
    proposals = model.proposal_generator
    if proposals is None:
        raise NotImplementedError(
            "a model without proposal generator has no export: its proposals are inputs"
        )
    if not defines(proposals, RPN, "forward", "predict_proposals", "_decode_proposals"):
        _refuse(proposals, "only detectron2's RPN has")
    anchors = proposals.anchor_generator
    if not defines(anchors, DefaultAnchorGenerator, "forward", "_grid_anchors") and not defines(
        anchors, TorchvisionAnchorGenerator, "forward"
    ):
        _refuse(anchors, "only detectron2's DefaultAnchorGenerator and TorchvisionAnchorGenerator have")
    _check_heads(model.roi_heads, format)
    for name, module in model.roi_heads.named_modules():
        if name == "pooler" or name.endswith("_pooler"):
            _check_pooler(name, module, format)


def _check_heads(heads, format) -> None:
    if not any(isinstance(heads, owner) and defines(heads, owner, *methods) for owner, methods in _ROI_HEADS):
        known = ", ".join(owner.__name__ for owner, _ in _ROI_HEADS)
        _refuse(heads, f"there is one for {known}")
    predictors = (
        heads.box_predictor if isinstance(heads.box_predictor, nn.ModuleList) else [heads.box_predictor]
    )
    for predictor in predictors:
        if not defines(predictor, FastRCNNOutputLayers, "inference", "predict_boxes", "predict_probs"):
            _refuse(predictor, "only detectron2's FastRCNNOutputLayers has")
    if heads.mask_on:
        head = heads.mask_head
        if defines(head, MaskScoringHead, "forward", "layers"):
            if format == "onnx":
                _refuse(
                    head,
                    "its adaptive pooling is no operator of ONNX's. TorchScript and torch.export have it",
                )
            head = head.mask_head
        stock = defines(head, BaseMaskRCNNHead, "forward")
        if not stock and not defines(head, MaskHead, "forward", "inference"):
            _refuse(head, "it makes masks in a way of its own")
    if getattr(heads, "keypoint_on", False):
        head = heads.keypoint_head
        stock = defines(head, BaseKeypointRCNNHead, "forward")
        if not stock and not defines(head, KeypointHead, "forward", "decode"):
            _refuse(head, "it makes keypoints in a way of its own")


def _check_pooler(name, pooler, format) -> None:
    if pooler is None or not isinstance(pooler, FusedROIPooler) or pooler.stock_pooler is not None:
        what = "rotated boxes" if getattr(pooler, "stock_pooler", None) is not None else type(pooler).__name__
        raise NotImplementedError(f"roi_heads.{name} pools {what}, which has no export")
    if format == "onnx" and pooler.mode != "avg":
        raise NotImplementedError(
            f"roi_heads.{name} pools by {pooler.pooler_type}, which ONNX cannot: its RoiAlign is ROIAlign and "
            "ROIAlignV2. TorchScript (.ts) and torch.export (.pt2) take every type"
        )


def _refuse(part, why) -> None:
    raise NotImplementedError(f"{type(part).__name__} has no export: {why}")
