"""Evaluators: detectron2's own, and what they lack. `coco_metrics` and `cityscapes_metrics` run without detectron2."""

from importlib.util import find_spec

__all__ = []

if find_spec("detectron2") is not None:
    from .build import build_evaluator, takes_lazy_masks
    from .cityscapes_evaluation import CityscapesInstanceEvaluator
    from .coco_evaluation import COCOEvaluator, instances_to_coco_json

    __all__ += [
        "COCOEvaluator",
        "CityscapesInstanceEvaluator",
        "build_evaluator",
        "instances_to_coco_json",
        "takes_lazy_masks",
    ]
