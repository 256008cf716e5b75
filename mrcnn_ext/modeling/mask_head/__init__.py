"""Mask heads registered with detectron2's ROI_MASK_HEAD_REGISTRY."""

from .fcn import FCNMaskHead

__all__ = ["FCNMaskHead"]
