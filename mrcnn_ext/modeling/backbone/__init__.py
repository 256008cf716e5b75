"""Backbones registered with detectron2's BACKBONE_REGISTRY."""

from .pixels import PixelBackbone, build_pixel_backbone
from .timm import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    follow_timm,
    timm_input,
)

__all__ = [
    "PixelBackbone",
    "TimmBackbone",
    "build_pixel_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "follow_timm",
    "timm_input",
]
