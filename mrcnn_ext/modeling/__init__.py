"""What is registered with detectron2. Thin: networks and operators are those of `mrcnn_ext.layers`."""

from ..accel import Acceleration, accelerate
from ..layers import LazyMasks
from . import fuse_rules  # noqa: F401  (registration)
from .anchor_generator import TorchvisionAnchorGenerator
from .backbone import (
    PAFPN,
    PixelBackbone,
    SimpleFeaturePyramid,
    TimmBackbone,
    build_pixel_backbone,
    build_resnet_pafpn_backbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_pafpn_backbone,
    build_timm_retinanet_fpn_backbone,
    build_timm_simple_pyramid_backbone,
    timm_input,
)
from .box_head import CNNBoxHead, HingeOutputLayers
from .keypoint_head import (
    ConvLSTMKeypointHead,
    HeatmapKeypointHead,
    KeypointHead,
    SimCCKeypointHead,
    TemporalKeypointHead,
    UniPoseLSTMKeypointHead,
)
from .mask_head import BoundaryMaskHead, FCNMaskHead, MaskHead, MaskScoringHead, MLPMaskHead
from .meta_arch import UniPose, UniPoseHead
from .poolers import FusedROIPooler
from .roi_heads import CropPooler, FusedCascadeROIHeads, FusedRes5ROIHeads, FusedROIHeads, RCNNROIHeads
from .streaming import carries_state, streaming
from .test_time_augmentation import GeneralizedRCNNWithTTA

__all__ = [
    "PAFPN",
    "SimpleFeaturePyramid",
    "build_resnet_pafpn_backbone",
    "build_timm_pafpn_backbone",
    "build_timm_simple_pyramid_backbone",
    "Acceleration",
    "BoundaryMaskHead",
    "CNNBoxHead",
    "ConvLSTMKeypointHead",
    "CropPooler",
    "FCNMaskHead",
    "FusedCascadeROIHeads",
    "FusedROIHeads",
    "FusedROIPooler",
    "FusedRes5ROIHeads",
    "GeneralizedRCNNWithTTA",
    "HeatmapKeypointHead",
    "HingeOutputLayers",
    "KeypointHead",
    "LazyMasks",
    "MLPMaskHead",
    "MaskHead",
    "MaskScoringHead",
    "PixelBackbone",
    "RCNNROIHeads",
    "SimCCKeypointHead",
    "TemporalKeypointHead",
    "TimmBackbone",
    "TorchvisionAnchorGenerator",
    "UniPose",
    "UniPoseHead",
    "UniPoseLSTMKeypointHead",
    "accelerate",
    "build_pixel_backbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "carries_state",
    "streaming",
    "timm_input",
]
