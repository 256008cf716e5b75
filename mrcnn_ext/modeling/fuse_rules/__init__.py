"""How detectron2's detectors and components are fused. Importing it registers the rules with `mrcnn_ext.accel`."""

from . import backbones, heads  # noqa: F401  (registration)
from .detector import Detectron2
from .unipose import SinglePerson

__all__ = ["Detectron2", "SinglePerson"]
