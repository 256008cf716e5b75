"""Acceleration: which kernel computes a layer, fused layers, and how modules become fused. Knows no framework: those
register their rules (`rule_for`) and detectors (`register_framework`)."""

from .accelerate import Acceleration, Framework, accelerate, fuse_poolers, register_framework
from .conv_classes import register_conv
from .fused_blocks import (
    ConvNorm,
    FusedBasicBlock,
    FusedBottleneck,
    FusedPyramid,
    FusedStem,
    JointConvs,
    PredictedClassMasks,
)
from .fused_layers import FusedConv2d, FusedConvTranspose2d, FusedLinear
from .fused_module import FusedModule, MethodStep, PreparedWeights, replace_child, replace_method, restore
from .int8 import Int8Calibration, Int8Layer
from .mixed_precision import register_float32_only
from .norms import register_norm
from .policy import KernelPolicy
from .rules import fuse, fuse_children, rule_for
from .traced import FusedConvStack, FusedNetwork, fuse_traced
from .trained_blocks import TrainedClassMaps, TrainedPredictions

__all__ = [
    "Acceleration",
    "ConvNorm",
    "Framework",
    "FusedBasicBlock",
    "FusedBottleneck",
    "FusedConv2d",
    "FusedConvStack",
    "FusedConvTranspose2d",
    "FusedLinear",
    "FusedModule",
    "FusedNetwork",
    "FusedPyramid",
    "FusedStem",
    "Int8Calibration",
    "Int8Layer",
    "JointConvs",
    "KernelPolicy",
    "MethodStep",
    "PredictedClassMasks",
    "PreparedWeights",
    "TrainedClassMaps",
    "TrainedPredictions",
    "accelerate",
    "fuse",
    "fuse_children",
    "fuse_poolers",
    "fuse_traced",
    "register_conv",
    "register_float32_only",
    "register_framework",
    "register_norm",
    "replace_child",
    "replace_method",
    "restore",
    "rule_for",
]
