"""Synthetic street scenes, their registration with detectron2, and checks of datasets before training."""

import os
from importlib.util import find_spec

__all__ = []

if find_spec("detectron2") is not None:
    from .check import check_dataset
    from .coco_format import register_coco_format
    from .register import register_scenes

    __all__ += ["check_dataset", "register_coco_format", "register_scenes"]
    _ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    register_scenes(os.path.join(_ROOT, "scenes"))
    register_scenes(os.path.join(_ROOT, "scenes_easy"), prefix="scenes_easy")
