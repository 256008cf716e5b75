"""Mask R-CNN components for detectron2.

``import mrcnn_ext`` registers every component in detectron2's registries, and the detectors of detectron2 and
torchvision with `accelerate`. Where detectron2 is not installed, everything else works.

detectron2 itself is changed in one way: :mod:`mrcnn_ext.compat` mends what of it does not work with today's packages,
one function per defect, each where the defect is found and nowhere else, and has its errors and warnings name our
keys. Set the environment variable
``MRCNN_EXT_COMPAT=0`` before the import to leave detectron2 as it is.
"""

import os
from importlib.util import find_spec

__version__ = "0.2.0"
__all__ = ["__version__"]

if find_spec("detectron2") is not None and os.environ.get("MRCNN_EXT_COMPAT") != "0":
    from . import compat

    compat.apply()  # first: it repairs modules while they are imported

if find_spec("torch") is not None:  # mrcnn_ext.scenes works without
    from .accel import accelerate, fuse_poolers  # noqa: F401
    from .integrations import timm, torchvision  # noqa: F401  (registration)

    __all__ += ["accelerate", "fuse_poolers"]

if find_spec("detectron2") is not None:
    from . import data, modeling  # noqa: F401  (registration)
    from .config import add_mrcnn_ext_config  # noqa: F401

    __all__ += ["add_mrcnn_ext_config"]
