"""Fuse rules for detectron2's convolutions, normalisations, ResNets and feature pyramids."""

from collections.abc import Iterator

from detectron2.layers import Conv2d, DeformConv, ModulatedDeformConv
from detectron2.modeling import SimpleFeaturePyramid as StockSimpleFeaturePyramid
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from ...accel import (
    ConvNorm,
    FusedBasicBlock,
    FusedBottleneck,
    FusedPyramid,
    FusedStem,
    KernelPolicy,
    fuse,
    register_conv,
    register_float32_only,
    register_norm,
    replace_child,
    rule_for,
)
from ...accel.conv_classes import activation_after, is_known_conv, is_relu
from ...accel.fused_module import defines
from ...accel.mixed_precision import AutocastNetwork, Float32Network, is_float32_only
from ..backbone import PAFPN

__all__ = ["FusedFPN", "FusedPAFPN", "residual_blocks", "stems"]

register_conv(Conv2d, lambda conv: conv.activation)
register_norm("detectron2.layers.batch_norm.FrozenBatchNorm2d", frozen=True)
register_norm("detectron2.layers.batch_norm.NaiveSyncBatchNorm")
register_float32_only(DeformConv, ModulatedDeformConv, DeformConv2d)


def _is_fusable(conv: nn.Module, may_end_with_relu: bool = False) -> bool:
    if not is_known_conv(conv):
        return False
    activation = activation_after(conv)
    return activation is None or (may_end_with_relu and is_relu(activation))


def _convs(block):
    names = [name for name in ("conv1", "conv2", "conv3") if name in block._modules]
    shortcut = None if block.shortcut is None else ConvNorm("shortcut")
    names_of_all = names + ([] if shortcut is None else ["shortcut"])
    if not all(_is_fusable(block._modules[name]) for name in names_of_all):
        return None
    return [ConvNorm(name) for name in names], shortcut


def residual_blocks(model: nn.Module) -> Iterator[tuple[str, list[ConvNorm], ConvNorm | None]]:
    """Name, convolutions and projection of each of detectron2's residual blocks whose forward is its own."""
    for name, block in model.named_modules():
        known = any(defines(block, cls, "forward") for cls in (BottleneckBlock, BasicBlock))
        convs = _convs(block) if known and "forward" not in vars(block) else None
        if convs is not None:
            yield name, *convs


def stems(model: nn.Module) -> Iterator[tuple[str, ConvNorm]]:
    """Name and convolution of each of detectron2's stems."""
    for name, stem in model.named_modules():
        if defines(stem, BasicStem, "forward") and "forward" not in vars(stem) and _is_fusable(stem.conv1):
            yield name, ConvNorm("conv1")


@rule_for(BottleneckBlock)
def _fuse_bottleneck(block, policy):
    convs = _convs(block)
    return None if convs is None else FusedBottleneck.from_module(block, policy, *convs)


@rule_for(BasicBlock)
def _fuse_basic_block(block, policy):
    convs = _convs(block)
    return None if convs is None else FusedBasicBlock.from_module(block, policy, *convs)


@rule_for(BasicStem)
def _fuse_stem(stem, policy):
    return FusedStem.from_module(stem, policy, ConvNorm("conv1")) if _is_fusable(stem.conv1) else None


@rule_for(ResNet)
def _fuse_resnet(network, policy):
    """The stem and each stage by itself. What cannot be fused of a stage stays, in float32 if it must."""
    _fuse_or_keep(network, "stem", policy)
    for name in network.stage_names:
        stage = network._modules[name]
        if not _fuse_or_keep(network, name, policy):
            for index in stage._modules:
                _fuse_or_keep(stage, index, policy, alone=True)
    return network


def _fuse_or_keep(parent, name: str, policy: KernelPolicy, alone: bool = False) -> bool:
    child = parent._modules[name]
    fused = None if is_float32_only(child) else fuse(child, policy)
    if fused is None and alone:
        fused = Float32Network(child)
    if fused is not None:
        replace_child(parent, name, fused)
    return fused is not None


class FusedFPN(FusedPyramid, FPN):
    """detectron2's FPN; its bottom-up network is fused by itself."""

    def infer(self, x: Tensor) -> dict[str, Tensor]:
        bottom_up = self.bottom_up(x)
        results = self.levels([bottom_up[name] for name in self.in_features])
        if self.top_block is not None:
            name = self.top_block.in_feature
            source = bottom_up[name] if name in bottom_up else results[self._out_features.index(name)]
            results.extend(self.top_block(source))
        return dict(zip(self._out_features, results, strict=True))


class FusedPAFPN(FusedFPN):
    """`PAFPN`: its top-down pathway as FPN's, its bottom-up path by fused convolutions."""

    def __init__(self, original: PAFPN, policy: KernelPolicy, *args):
        super().__init__(original, policy, *args)
        for name in _names_of(original, [*original.downs, *original.outputs]):
            ConvNorm(name).fuse(original, policy)

    def infer(self, x: Tensor) -> dict[str, Tensor]:
        return self.original.bottom_up_path(super().infer(x))


@rule_for(FPN)
def _fuse_fpn(network, policy):
    return _fuse_top_down(FusedFPN, network, policy)


@rule_for(PAFPN, methods=("forward", "bottom_up_path"))
def _fuse_pafpn(network, policy):
    names = _names_of(network, [*network.downs, *network.outputs])
    if not all(name is not None and _is_fusable(network._modules[name], True) for name in names):
        return None
    return _fuse_top_down(FusedPAFPN, network, policy)


def _fuse_top_down(cls, network, policy):
    # The lists are coarsest first.
    convs = [_names_of(network, of[::-1]) for of in (network.lateral_convs, network.output_convs)]
    if not all(name is not None and _is_fusable(network._modules[name], True) for of in convs for name in of):
        return None
    laterals, outputs = ([ConvNorm(name) for name in of] for of in convs)
    return cls.from_module(network, policy, laterals, outputs, network._fuse_type == "avg")


def _names_of(network, convs):
    """Under which a network has some of its children; None where it has not."""
    names = {module: name for name, module in network.named_children()}
    return [names.get(conv) for conv in convs]


@rule_for(StockSimpleFeaturePyramid)
def _fuse_simple_pyramid(network, policy):
    """Each level by itself; the network below is fused by itself."""
    for name in [name for name in network._modules if name.startswith("simfp_")]:
        fused = fuse(network._modules[name], policy)
        if fused is None and policy.autocast:
            fused = AutocastNetwork(network._modules[name], dtype=policy.autocast)
        if fused is not None:
            replace_child(network, name, fused)
    return network
