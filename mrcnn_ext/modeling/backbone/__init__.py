"""Backbones registered with detectron2's BACKBONE_REGISTRY."""

from .pafpn import PAFPN, build_resnet_pafpn_backbone, build_timm_pafpn_backbone
from .pixels import PixelBackbone, build_pixel_backbone
from .simple_pyramid import SimpleFeaturePyramid, build_timm_simple_pyramid_backbone
from .timm import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    check_timm_input,
    follow_timm,
    timm_input,
)

__all__ = [
    "PAFPN",
    "PixelBackbone",
    "SimpleFeaturePyramid",
    "TimmBackbone",
    "build_pixel_backbone",
    "build_resnet_pafpn_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_pafpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "build_timm_simple_pyramid_backbone",
    "check_timm_input",
    "follow_timm",
    "timm_input",
]
