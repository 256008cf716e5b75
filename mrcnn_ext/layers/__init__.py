"""Operators and networks on plain tensors. Imports torch, never detectron2."""

from .keypoint_networks import HeatmapKeypointNetwork
from .mask_networks import FCNMaskNetwork
from .roi_align import roi_align, roi_align_pyramid
from .timm_features import TimmFeatures

__all__ = ["FCNMaskNetwork", "HeatmapKeypointNetwork", "TimmFeatures", "roi_align", "roi_align_pyramid"]
