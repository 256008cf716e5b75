"""The networks and operators of mrcnn_ext.layers inside torchvision's detectors; detectron2 is not needed."""

from . import fuse_rules  # noqa: F401  (registration)
from .detector import FusedRoIHeads, FusedRPN, FusedTransform
from .models import FPNBackbone, keypoint_rcnn, mask_keypoint_rcnn, mask_rcnn
from .poolers import FusedMultiScaleRoIAlign
from .weights import detectron2_weights, transfer_weights

__all__ = [
    "FPNBackbone",
    "FusedMultiScaleRoIAlign",
    "FusedRPN",
    "FusedRoIHeads",
    "FusedTransform",
    "detectron2_weights",
    "keypoint_rcnn",
    "mask_keypoint_rcnn",
    "mask_rcnn",
    "transfer_weights",
]
