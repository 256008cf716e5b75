"""ROI heads registered with detectron2's ROI_HEADS_REGISTRY."""

from .fused import FusedCascadeROIHeads, FusedRes5ROIHeads, FusedROIHeads

__all__ = ["FusedCascadeROIHeads", "FusedROIHeads", "FusedRes5ROIHeads"]
