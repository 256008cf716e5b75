"""Fuse rules for detectron2's heads and for those made of its base classes."""

import torch
from detectron2.layers import cat
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.keypoint_head import BaseKeypointRCNNHead
from detectron2.modeling.roi_heads.mask_head import (
    BaseMaskRCNNHead,
    MaskRCNNConvUpsampleHead,
    mask_rcnn_inference,
    mask_rcnn_loss,
)
from detectron2.structures import Instances
from torch import Tensor, nn

from ...accel import (
    FusedConv2d,
    FusedConvTranspose2d,
    FusedModule,
    JointConvs,
    KernelPolicy,
    MethodStep,
    PredictedClassMasks,
    TrainedClassMaps,
    TrainedPredictions,
    fuse,
    fuse_traced,
    replace_child,
    replace_method,
    rule_for,
)
from ...accel.conv_classes import activation_after, is_known_conv
from ...accel.fused_module import defines, original_of
from ...accel.kernel_support import is_doubling

__all__ = [
    "FusedRPNHead",
    "TrainedClassMasks",
    "PredictedClassMethod",
    "TrainedRPNHead",
    "fuse_layers",
    "predicted_class_tail",
    "trained_rpn_head",
]


class FusedRPNHead(FusedModule, StandardRPNHead):
    """detectron2's head of the region proposal network: objectness and deltas by one convolution, both in float32.

    Args:
        original: the head.
        policy: what to compute with.
    """

    def __init__(self, original: StandardRPNHead, policy: KernelPolicy):
        super().__init__(original)
        self.predictors = JointConvs((original.objectness_logits, original.anchor_deltas), policy)
        fused = fuse(original.conv, policy)
        if fused is not None:
            replace_child(original, "conv", fused)

    def infer(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*[self.predictors(self.conv(x)) for x in features], strict=True)
        return list(logits), list(deltas)

    def extra_repr(self) -> str:
        return "objectness_logits and anchor_deltas as one"


@rule_for(StandardRPNHead)
def _fuse_rpn_head(head, policy):
    serves = JointConvs.serves((head.objectness_logits, head.anchor_deltas))
    return FusedRPNHead.from_module(head, policy) if serves else None


class TrainedRPNHead(FusedModule, StandardRPNHead):
    """detectron2's head of the region proposal network in training: its gradients are computed where there are any.

    Args:
        original: the head, whose layers `TrainedPredictions` takes.
    """

    def __init__(self, original: StandardRPNHead):
        super().__init__(original)
        self.predictions = TrainedPredictions(
            original.conv, (original.objectness_logits, original.anchor_deltas)
        )

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*map(self.predictions, features), strict=True)
        return list(logits), list(deltas)

    def extra_repr(self) -> str:
        return "objectness_logits and anchor_deltas as one"


def trained_rpn_head(head: nn.Module | None) -> TrainedRPNHead | None:
    """Of a head whose layers were prepared for training; None if it is another's or has other layers."""
    if not defines(head, StandardRPNHead, "forward"):
        return None
    fits = TrainedPredictions.serves(head.conv, (head.objectness_logits, head.anchor_deltas))
    return TrainedRPNHead.from_module(head) if fits else None


def fuse_layers(head: nn.Module, policy: KernelPolicy) -> nn.Module | None:
    """Fuses the ``layers`` of one of detectron2's heads, as `torch.fx` follows them; their result is float32.

    Returns:
        The head; None if they cannot be followed, and the head is as it was.
    """
    return fuse_traced(head, policy, "layers", float32=True)


@rule_for(BaseKeypointRCNNHead, methods=())
def _fuse_keypoint_head(head, policy):
    return fuse_layers(head, policy)


@rule_for(BaseMaskRCNNHead, methods=())
def _fuse_mask_head(head, policy):
    return fuse_layers(head, policy)


@rule_for(MaskRCNNConvUpsampleHead, methods=("layers",))
def _fuse_upsample_head(head, policy):
    head = fuse_layers(head, policy)
    tail = predicted_class_tail(list(head), policy) if head is not None else None
    if tail is not None and defines(head, MaskRCNNConvUpsampleHead, "forward"):
        replace_method(PredictedClassMethod(head, "forward", list(head)[:-3], tail))
    return head


def predicted_class_tail(layers: list[nn.Module], policy: KernelPolicy) -> PredictedClassMasks | None:
    """The last three layers of a mask head for the predicted class alone; None if they are not a transposed convolution
    that doubles the map, a ReLU and a 1x1 convolution."""
    if not _ends_with_class_masks(layers):
        return None
    deconv, _, predictor = layers[-3:]
    return PredictedClassMasks(deconv, predictor, policy)


def _ends_with_class_masks(layers):
    if len(layers) < 3:
        return False
    deconv, relu, predictor = layers[-3:]
    conv = original_of(predictor)
    return (
        is_doubling(deconv)
        and type(relu) is nn.ReLU
        and is_known_conv(conv)
        and activation_after(conv) is None
        and getattr(conv, "norm", None) is None
        and (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)
        and conv.padding in ((0, 0), "valid")
    )


class TrainedClassMasks(MethodStep):
    """The forward of detectron2's `MaskRCNNConvUpsampleHead`, of which training computes the mask of the ground truth's
    class of each RoI alone: the others take no part in the loss (Mask R-CNN, section 3)."""

    def __init__(self, head: MaskRCNNConvUpsampleHead):
        super().__init__(head, "forward")
        *self.trunk, deconv, _, predictor = head
        self.maps = TrainedClassMaps(deconv, predictor)

    @staticmethod
    def serves(head: nn.Module | None) -> bool:
        """Whether a head is such a one, of layers that `TrainedClassMaps` takes and a mask for each class."""
        known = defines(head, MaskRCNNConvUpsampleHead, "forward", "layers") and "layers" not in vars(head)
        return known and _ends_with_class_masks(list(head)) and original_of(list(head)[-1]).out_channels > 1

    def __call__(self, x: Tensor, instances: list[Instances]):
        head = self.module
        images = [image for image in instances if len(image)]
        if not (head.training and images):
            return self.stock(x, instances)
        for layer in self.trunk:
            x = layer(x)
        # A single map, which detectron2 takes for class-agnostic.
        maps = self.maps(x, cat([image.gt_classes for image in images]).long())
        return {"loss_mask": mask_rcnn_loss(maps, instances, head.vis_period) * head.loss_weight}


class PredictedClassMethod(MethodStep):
    """A method that takes RoI features (R, C, H, W) and instances with ``pred_classes`` and gives them ``pred_masks``:
    only the masks of those classes are computed.

    Args:
        module, method: whose it is, see `MethodStep`.
        trunk: the layers before the tail; a callable is one layer.
        tail: of the same module.
    """

    def __init__(self, module: nn.Module, method: str, trunk, tail: PredictedClassMasks):
        super().__init__(module, method)
        self.trunk, self.tail = trunk, tail

    def __call__(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        if self.module.training:
            return self.stock(x, instances)
        classes = cat([image.pred_classes for image in instances])
        with torch.autocast(x.device.type, enabled=False):
            logits = self.tail(self._features(x), classes)
        mask_rcnn_inference(logits, instances)  # which takes a single map for class-agnostic
        return instances

    def _features(self, x):
        layers, index = list(self.trunk), 0
        while index < len(layers):
            layer, index = layers[index], index + 1
            relu = index < len(layers) and type(layers[index]) is nn.ReLU
            if relu and isinstance(layer, (FusedConv2d, FusedConvTranspose2d)):
                x, index = layer.run(x, relu=True), index + 1
            else:
                x = layer(x)
        return x
