"""Mask R-CNN components for detectron2.

``import mrcnn_ext`` registers every component in detectron2's registries and changes nothing else. Where
detectron2 is not installed, ``mrcnn_ext.layers`` and ``mrcnn_ext.scenes`` still work.
"""

from importlib.util import find_spec

__version__ = "0.2.0"
__all__ = ["__version__"]

if find_spec("detectron2") is not None:
    from . import compat

    compat.apply()
    from . import data, modeling  # noqa: F401  (registration)
    from .config import add_mrcnn_ext_config  # noqa: F401
    from .modeling import accelerate  # noqa: F401

    __all__ += ["accelerate", "add_mrcnn_ext_config"]
