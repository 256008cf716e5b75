"""Keypoint heads registered with detectron2's ROI_KEYPOINT_HEAD_REGISTRY."""

from .heatmap import HeatmapKeypointHead

__all__ = ["HeatmapKeypointHead"]
