"""Evaluators: detectron2's own, and what they lack."""

from .build import build_evaluator
from .cityscapes_evaluation import CityscapesInstanceEvaluator
from .coco_evaluation import COCOEvaluator

__all__ = ["COCOEvaluator", "CityscapesInstanceEvaluator", "build_evaluator"]
