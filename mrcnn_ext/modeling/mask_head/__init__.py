"""Mask heads registered with detectron2's ROI_MASK_HEAD_REGISTRY."""

from .base import MaskHead
from .boundary import BoundaryMaskHead
from .fcn import FCNMaskHead
from .mlp import MLPMaskHead
from .scoring import MaskScoringHead

__all__ = ["BoundaryMaskHead", "FCNMaskHead", "MLPMaskHead", "MaskHead", "MaskScoringHead"]
