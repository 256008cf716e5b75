"""Operators and networks on plain tensors. Imports torch, never detectron2."""

from .roi_align import roi_align, roi_align_pyramid

__all__ = ["roi_align", "roi_align_pyramid"]
