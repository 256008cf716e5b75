"""The evaluator of a dataset."""

import functools
import logging
import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, LVISEvaluator, PascalVOCDetectionEvaluator
from detectron2.utils import comm

from .cityscapes_evaluation import CityscapesInstanceEvaluator
from .coco_evaluation import COCOEvaluator

__all__ = ["build_evaluator", "takes_lazy_masks"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None):
    """Build the evaluator that the ``evaluator_type`` in the dataset's metadata names.

    Args:
        cfg: ``MODEL.MASK_ON``, ``MODEL.KEYPOINT_ON`` say what the model predicts; ``TEST.BOUNDARY_AP``
            adds the task "boundary" to COCO's. Where it cannot be computed, one warning says so.
        dataset_name: a registered dataset.
        output_dir: where predictions are written; default ``<OUTPUT_DIR>/inference/<dataset_name>``.

    Returns:
        DatasetEvaluator:

    Raises:
        ValueError: the dataset has no ``evaluator_type``, or one that instances cannot be evaluated by.
    """
    metadata = MetadataCatalog.get(dataset_name)
    evaluator_type = metadata.get("evaluator_type")
    if output_dir is None:
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    boundary = _boundary_task(cfg, dataset_name, evaluator_type)
    if evaluator_type == "coco":
        return COCOEvaluator(
            dataset_name,
            tasks=_tasks(cfg, metadata) + boundary,
            output_dir=output_dir,
            kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
            max_dets_per_image=_limit(cfg.TEST.DETECTIONS_PER_IMAGE),
        )
    if evaluator_type == "cityscapes_instance":
        return CityscapesInstanceEvaluator(dataset_name)
    if evaluator_type == "lvis":
        return LVISEvaluator(dataset_name, tasks=_tasks(cfg, metadata), output_dir=output_dir)
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(dataset_name)
    raise ValueError(
        f"dataset {dataset_name}: metadata evaluator_type is {evaluator_type!r}; "
        "expected one of 'coco', 'cityscapes_instance', 'lvis', 'pascal_voc'"
    )


def takes_lazy_masks(evaluator) -> bool:
    """Whether an evaluator is known to take :class:`~mrcnn_ext.modeling.LazyMasks` and never paste them."""
    if isinstance(evaluator, DatasetEvaluators):
        return all(map(takes_lazy_masks, evaluator._evaluators))
    # A subclass may process predictions in its own way.
    return type(evaluator).process in (COCOEvaluator.process, CityscapesInstanceEvaluator.process)


def _limit(detections_per_image):
    """COCO's 100, or what the config has more; None, as many as are predicted, where the config has no limit."""
    return max(detections_per_image, 100) if detections_per_image >= 0 else None


def _tasks(cfg, metadata):
    tasks = ["bbox"]
    if cfg.MODEL.MASK_ON:
        tasks.append("segm")
    # A box-only dataset may stand beside one with keypoints in DATASETS.TEST.
    if cfg.MODEL.KEYPOINT_ON and metadata.get("keypoint_names"):
        tasks.append("keypoints")
    return tuple(tasks)


def _boundary_task(cfg, dataset_name, evaluator_type):
    # Not among detectron2's own keys: a config made without add_mrcnn_ext_config works too.
    if not cfg.TEST.get("BOUNDARY_AP", False):
        return ()
    if not cfg.MODEL.MASK_ON:
        _warn_once("TEST.BOUNDARY_AP is left out: the model predicts no masks (MODEL.MASK_ON is False)")
        return ()
    if evaluator_type != "coco":
        _warn_once(
            f"TEST.BOUNDARY_AP is left out for dataset {dataset_name!r}: its metadata evaluator_type is "
            f"{evaluator_type!r}, and only that of COCO's format, 'coco', has boundary AP"
        )
        return ()
    return ("boundary",)


@functools.cache
def _warn_once(message: str):
    if comm.is_main_process():
        logging.getLogger(__name__).warning(message)
