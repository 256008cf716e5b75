"""Fuse rules for torchvision's normalisations, ResNets, feature pyramids and heads."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork

from ...accel import (
    ConvNorm,
    FusedBasicBlock,
    FusedBottleneck,
    FusedModule,
    FusedPyramid,
    JointConvs,
    KernelPolicy,
    fuse,
    fuse_children,
    register_norm,
    replace_child,
    rule_for,
)
from ...accel.conv_classes import activation_after, is_known_conv, is_relu

__all__ = ["FusedFeaturePyramid", "FusedRPNHead"]

register_norm("torchvision.ops.misc.FrozenBatchNorm2d", frozen=True)


def _is_plain_conv(layer):
    return is_known_conv(layer) and activation_after(layer) is None


def _conv_norm(owner: nn.Module, name: str) -> ConvNorm | None:
    """A convolution of ``owner``, or a sequence of one, a normalisation and a ReLU, of which the last two may be
    missing; None if it is something else."""
    module = owner.get_submodule(name)
    if _is_plain_conv(module):
        return ConvNorm(name)
    layers = list(module) if isinstance(module, nn.Sequential) else []
    if not layers or not _is_plain_conv(layers[0]):
        return None
    relu = len(layers) > 1 and is_relu(layers[-1])
    norms = layers[1 : len(layers) - relu]
    if len(norms) > 1 or any(
        next(norm.parameters(), None) is None and not hasattr(norm, "eps") for norm in norms
    ):
        return None
    return ConvNorm(f"{name}.0", f"{name}.1" if norms else None, relu)


def _block_parts(block, pairs):
    if not is_relu(block.relu) or not all(_is_plain_conv(getattr(block, conv)) for conv, _ in pairs):
        return None
    shortcut = None if block.downsample is None else _conv_norm(block, "downsample")
    if block.downsample is not None and (shortcut is None or shortcut.relu):
        return None
    return [ConvNorm(conv, norm) for conv, norm in pairs], shortcut


@rule_for(Bottleneck)
def _fuse_bottleneck(block, policy):
    parts = _block_parts(block, (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")))
    return None if parts is None else FusedBottleneck.from_module(block, policy, *parts)


@rule_for(BasicBlock)
def _fuse_basic_block(block, policy):
    parts = _block_parts(block, (("conv1", "bn1"), ("conv2", "bn2")))
    return None if parts is None else FusedBasicBlock.from_module(block, policy, *parts)


class FusedFeaturePyramid(FusedPyramid, FeaturePyramidNetwork):
    """torchvision's FeaturePyramidNetwork."""

    def infer(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(x), list(x.values())
        results = self.levels(maps)
        if self.extra_blocks is not None:
            results, names = self.extra_blocks(results, maps, names)
        return OrderedDict(zip(names, results, strict=True))


@rule_for(FeaturePyramidNetwork)
def _fuse_pyramid(network, policy):
    laterals, outputs = (
        [_conv_norm(network, f"{blocks}.{index}") for index in range(len(network.get_submodule(blocks)))]
        for blocks in ("inner_blocks", "layer_blocks")
    )
    if None in laterals or None in outputs:
        return None
    if network.extra_blocks is not None:
        fuse_children(network.extra_blocks, policy)
    return FusedFeaturePyramid.from_module(network, policy, laterals, outputs)


class FusedRPNHead(FusedModule, RPNHead):
    """torchvision's head of the region proposal network: objectness and deltas by one convolution, both in float32.

    Args:
        original: the head.
        policy: what to compute with.
    """

    def __init__(self, original: RPNHead, policy: KernelPolicy):
        super().__init__(original)
        self.predictors = JointConvs((original.cls_logits, original.bbox_pred), policy)
        fused = fuse(original.conv, policy)
        if fused is not None:
            replace_child(original, "conv", fused)

    def infer(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = zip(*[self.predictors(self.conv(level)) for level in x], strict=True)
        return list(logits), list(deltas)

    def extra_repr(self) -> str:
        return "cls_logits and bbox_pred as one"


@rule_for(RPNHead)
def _fuse_rpn_head(head, policy):
    serves = JointConvs.serves((head.cls_logits, head.bbox_pred))
    return FusedRPNHead.from_module(head, policy) if serves else None
