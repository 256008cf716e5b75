"""Backbones registered with detectron2's BACKBONE_REGISTRY."""

from .timm import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    follow_timm,
    timm_input,
)

__all__ = [
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "follow_timm",
    "timm_input",
]
