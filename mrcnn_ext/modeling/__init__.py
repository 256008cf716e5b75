"""What is registered with detectron2. Thin: networks and operators are those of `mrcnn_ext.layers`."""

from ..accel import Acceleration, accelerate
from ..layers import LazyMasks
from . import fuse_rules  # noqa: F401  (registration)
from .anchor_generator import TorchvisionAnchorGenerator
from .backbone import (
    TimmBackbone,
    build_timm_backbone,
    build_timm_fpn_backbone,
    build_timm_retinanet_fpn_backbone,
    timm_input,
)
from .keypoint_head import (
    ConvLSTMKeypointHead,
    HeatmapKeypointHead,
    KeypointHead,
    SimCCKeypointHead,
    TemporalKeypointHead,
    UniPoseLSTMKeypointHead,
)
from .mask_head import BoundaryMaskHead, FCNMaskHead, MaskHead, MaskScoringHead, MLPMaskHead
from .poolers import FusedROIPooler
from .roi_heads import FusedCascadeROIHeads, FusedRes5ROIHeads, FusedROIHeads
from .streaming import carries_state, streaming
from .test_time_augmentation import GeneralizedRCNNWithTTA

__all__ = [
    "Acceleration",
    "BoundaryMaskHead",
    "ConvLSTMKeypointHead",
    "FCNMaskHead",
    "FusedCascadeROIHeads",
    "FusedROIHeads",
    "FusedROIPooler",
    "FusedRes5ROIHeads",
    "GeneralizedRCNNWithTTA",
    "HeatmapKeypointHead",
    "KeypointHead",
    "LazyMasks",
    "MLPMaskHead",
    "MaskHead",
    "MaskScoringHead",
    "SimCCKeypointHead",
    "TemporalKeypointHead",
    "TimmBackbone",
    "TorchvisionAnchorGenerator",
    "UniPoseLSTMKeypointHead",
    "accelerate",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "carries_state",
    "streaming",
    "timm_input",
]
