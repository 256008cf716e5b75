"""Keypoint heads registered with detectron2's ROI_KEYPOINT_HEAD_REGISTRY."""

from .base import KeypointHead
from .heatmap import HeatmapKeypointHead
from .simcc import SimCCKeypointHead

__all__ = ["HeatmapKeypointHead", "KeypointHead", "SimCCKeypointHead"]
