"""Box heads registered with detectron2's ROI_BOX_HEAD_REGISTRY, and predictors."""

from .cnn import CNNBoxHead
from .hinge import HingeOutputLayers

__all__ = ["CNNBoxHead", "HingeOutputLayers"]
