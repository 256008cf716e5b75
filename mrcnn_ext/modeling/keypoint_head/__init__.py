"""Keypoint heads registered with detectron2's ROI_KEYPOINT_HEAD_REGISTRY."""

from .base import KeypointHead
from .heatmap import HeatmapKeypointHead
from .simcc import SimCCKeypointHead
from .temporal import ConvLSTMKeypointHead, TemporalKeypointHead, UniPoseLSTMKeypointHead

__all__ = [
    "ConvLSTMKeypointHead",
    "HeatmapKeypointHead",
    "KeypointHead",
    "SimCCKeypointHead",
    "TemporalKeypointHead",
    "UniPoseLSTMKeypointHead",
]
