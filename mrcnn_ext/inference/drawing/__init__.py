"""Pictures of detections that can be read: soft masks, labels beside their objects, skeletons, sizes that fit.

It takes and gives numpy arrays, and knows neither models nor files.
"""

from .palette import color_of
from .picture import Painter, Style

__all__ = ["Painter", "Style", "color_of"]
