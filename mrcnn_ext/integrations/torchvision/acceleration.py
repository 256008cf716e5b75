"""Making a plain detector of torchvision faster, its answers unchanged."""

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from ...ops.keypoint_decoding import heatmaps_to_keypoints
from .poolers import FusedMultiScaleRoIAlign

__all__ = ["FusedRoIHeads", "accelerate"]

# Exactly these classes: a subclass may do more than normalise (timm's also apply the activation).
_BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def accelerate(model: GeneralizedRCNN, *, fold_batch_norm: bool = True) -> GeneralizedRCNN:
    """A copy of a Faster, Mask or Keypoint R-CNN of torchvision that gives the same answers faster.

    RoIs are pooled from all levels in one call, convolutions run channels-last, keypoints are decoded in one
    batch, and batch normalisation becomes part of the convolution before it. Load the weights first: folded,
    the copy is for inference and has a state_dict of its own; with ``fold_batch_norm=False`` its parameters
    keep their names and it can be trained.

    Args:
        model: for instance ``maskrcnn_resnet50_fpn(...)``; left as it is.
        fold_batch_norm: fold the batch normalisations of the backbone and the heads.

    Raises:
        TypeError: not a model of torchvision.models.detection with RoIHeads.
        ValueError: ``fold_batch_norm`` for a model in training mode, or one whose layers cannot be traced.
    """
    if not isinstance(model, GeneralizedRCNN) or type(model.roi_heads) not in (RoIHeads, FusedRoIHeads):
        raise TypeError(
            f"model must be a FasterRCNN, MaskRCNN or KeypointRCNN of torchvision, got {type(model).__name__}"
        )
    if fold_batch_norm and model.training:
        raise ValueError(
            "fold_batch_norm is for inference: call model.eval() first, or give fold_batch_norm=False"
        )
    model = copy.deepcopy(model)
    for name, module in model.roi_heads.named_children():
        if type(module) is MultiScaleRoIAlign:
            setattr(model.roi_heads, name, _fused(module))
    model.roi_heads.__class__ = FusedRoIHeads
    if fold_batch_norm:
        for module in (model.backbone, *model.roi_heads.children()):
            if any(type(layer) in _BATCH_NORMS for layer in module.modules()):
                _fold_batch_norms(module)
    return model.to(memory_format=torch.channels_last)


class FusedRoIHeads(RoIHeads):
    """torchvision's RoIHeads; at inference the keypoints of all boxes are decoded in one batch."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """As torchvision's RoIHeads: features, proposals (L_i, 4) -> a dict per image, and the losses."""
        if self.training or not self.has_keypoint():
            return super().forward(features, proposals, image_shapes, targets)
        result, losses = RoIHeads.forward(
            self._without_keypoints(), features, proposals, image_shapes, targets
        )
        boxes = [image["boxes"] for image in result]
        pooled = self.keypoint_roi_pool(features, boxes, image_shapes)
        heatmaps = self.keypoint_predictor(self.keypoint_head(pooled))
        decoded = heatmaps_to_keypoints(heatmaps, torch.cat(boxes)).split([len(b) for b in boxes])
        for image, points in zip(result, decoded, strict=True):
            # torchvision's third number is 1 for every keypoint, its score the logit.
            image["keypoints"] = torch.cat([points[..., :2], torch.ones_like(points[..., :1])], dim=-1)
            image["keypoints_scores"] = points[..., 2]
        return result, losses

    def _without_keypoints(self) -> RoIHeads:
        others = copy.copy(self)
        others._modules = {**self._modules, "keypoint_head": None}
        return others


def _fused(pooler: MultiScaleRoIAlign) -> FusedMultiScaleRoIAlign:
    return FusedMultiScaleRoIAlign(
        pooler.featmap_names,
        pooler.output_size,
        pooler.sampling_ratio,
        canonical_scale=pooler.canonical_scale,
        canonical_level=pooler.canonical_level,
    )


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, qualified_name):
        return type(module) in _BATCH_NORMS or super().is_leaf_module(module, qualified_name)


def _fold_batch_norms(network: nn.Module) -> None:
    """Folds, in place, each batch normalisation that follows a convolution whose output goes nowhere else."""
    try:
        nodes = _Tracer().trace(network).nodes
    except Exception as error:
        raise ValueError(
            f"fold_batch_norm: torch.fx cannot follow {type(network).__name__}; give fold_batch_norm=False"
        ) from error
    modules = {node: network.get_submodule(node.target) for node in nodes if node.op == "call_module"}
    calls = Counter(modules.values())
    for node, norm in modules.items():
        before = node.args[0] if node.args else None
        conv = modules.get(before)
        if type(norm) not in _BATCH_NORMS or type(conv) is not nn.Conv2d:
            continue
        # What is called twice would be folded twice, or by a norm that is not always its own.
        if len(before.users) == calls[conv] == calls[norm] == 1:
            _fold(conv, norm)
            network.set_submodule(node.target, nn.Identity())


def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
