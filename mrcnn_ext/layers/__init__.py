"""Networks, losses and what their results are, on plain tensors; also exports the operators of `mrcnn_ext.ops`."""

from ..ops.keypoint_decoding import heatmaps_to_keypoints
from ..ops.mask_pasting import paste_masks
from ..ops.mask_rle import masks_to_rle
from ..ops.roi_align import roi_align, roi_align_pyramid
from .keypoint_networks import HeatmapKeypointNetwork, SimCCKeypointNetwork
from .lazy_masks import LazyMasks
from .mask_iou_network import MaskIoUNetwork
from .mask_networks import BoundaryMaskNetwork, FCNMaskNetwork, MLPMaskNetwork
from .temporal_networks import ConvLSTMCell, ConvLSTMKeypointNetwork, UniPoseLSTMNetwork
from .timm_features import TimmFeatures
from .waterfall import UniPoseNetwork, WaterfallASP, WaterfallDecoder

__all__ = [
    "BoundaryMaskNetwork",
    "ConvLSTMCell",
    "ConvLSTMKeypointNetwork",
    "FCNMaskNetwork",
    "HeatmapKeypointNetwork",
    "LazyMasks",
    "SimCCKeypointNetwork",
    "MLPMaskNetwork",
    "MaskIoUNetwork",
    "TimmFeatures",
    "UniPoseLSTMNetwork",
    "UniPoseNetwork",
    "WaterfallASP",
    "WaterfallDecoder",
    "heatmaps_to_keypoints",
    "masks_to_rle",
    "paste_masks",
    "roi_align",
    "roi_align_pyramid",
]
