"""Evaluators: detectron2's own, and what they lack."""

from .build import build_evaluator, takes_lazy_masks
from .cityscapes_evaluation import CityscapesInstanceEvaluator
from .coco_evaluation import COCOEvaluator, instances_to_coco_json

__all__ = [
    "COCOEvaluator",
    "CityscapesInstanceEvaluator",
    "build_evaluator",
    "instances_to_coco_json",
    "takes_lazy_masks",
]
