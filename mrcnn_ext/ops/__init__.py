"""Operators: each with its wrapper, its fake (meta) kernel, its autograd and its backends. Imports torch alone."""

from .box_matching import match_boxes
from .keypoint_decoding import heatmaps_to_keypoints
from .mask_pasting import paste_masks
from .mask_rle import masks_to_rle
from .roi_align import roi_align, roi_align_pyramid

__all__ = [
    "heatmaps_to_keypoints",
    "masks_to_rle",
    "match_boxes",
    "paste_masks",
    "roi_align",
    "roi_align_pyramid",
]
