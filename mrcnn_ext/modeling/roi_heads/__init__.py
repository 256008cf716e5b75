"""ROI heads registered with detectron2's ROI_HEADS_REGISTRY."""

from .fused import FusedCascadeROIHeads, FusedRes5ROIHeads, FusedROIHeads
from .rcnn import CropPooler, RCNNROIHeads

__all__ = ["CropPooler", "FusedCascadeROIHeads", "FusedROIHeads", "FusedRes5ROIHeads", "RCNNROIHeads"]
