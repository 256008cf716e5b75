"""Reports of evaluations: see :mod:`mrcnn_ext.reports`, which is imported only to write one: it imports matplotlib."""

import logging
import os
from collections.abc import Iterable

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage

from ..evaluation import COCOEvaluator
from .setup import is_of_training

__all__ = ["write_reports"]

_KEY = "TEST.REPORT (train.report)"


def write_reports(
    evaluators: Iterable[DatasetEvaluator], output_dir: str, results: dict, suffix: str = ""
) -> list[str]:
    """Writes ``report_<dataset>.html`` for each evaluator of ours that has evaluated data in COCO's format, in the main
    process. During a training it has the training's curves too.

    What goes wrong is logged and ends nothing: an evaluation is worth more than its report.

    Args:
        evaluators: that have evaluated.
        output_dir: of the training; its ``metrics.json`` is read.
        results: of the evaluation, which the event storage does not have yet.
        suffix: behind the data set's name; an evaluation into the folder of a training, whose report stays, adds
            ``_eval``.

    Returns:
        Paths of the files.
    """
    if not comm.is_main_process():
        return []
    ours = [e for e in _each(evaluators) if isinstance(e, COCOEvaluator) and e.records is not None]
    logger = logging.getLogger(__name__)
    if not ours:
        logger.warning("%s: there is no report, as no data set was evaluated in COCO's format", _KEY)
    if not has_event_storage() and is_of_training(output_dir):
        suffix += "_eval"
    written = []
    for evaluator in ours:
        path = os.path.join(output_dir, f"report_{evaluator.dataset_name}{suffix}.html")
        try:
            from ..reports.report import write_report

            write_report(_evaluated(evaluator), path, history=_history(output_dir, results))
        except Exception:
            logger.exception("%s: the report %s could not be written", _KEY, path)
        else:
            logger.info("Report: %s", path)
            written.append(path)
    return written


def _each(evaluators):
    for evaluator in evaluators:
        if isinstance(evaluator, DatasetEvaluators):
            yield from _each(evaluator._evaluators)
        else:
            yield evaluator


def _evaluated(evaluator):
    from ..reports.report import Evaluated

    images = len(evaluator.truth.imgs) / comm.get_world_size()
    timing = {}
    if evaluator.seconds:
        timing["evaluation, per image, with reading it"] = (
            f"{1000 * evaluator.seconds / max(images, 1):.0f} ms"
        )
    return Evaluated(
        evaluator.dataset_name,
        evaluator.truth,
        evaluator.records,
        image_root=evaluator.metadata.get("image_root", ""),
        keypoint_names=evaluator.metadata.get("keypoint_names", ()),
        sigmas=evaluator.sigmas,
        tasks=[task for task in ("bbox", "segm", "keypoints") if task in evaluator.evaluated_tasks],
        timing=timing,
    )


def _history(output_dir, results):
    """What the training has written, and what it is yet to write."""
    from ..reports import TrainingHistory

    if not has_event_storage():
        return None
    storage = get_event_storage()
    rows = [
        {"iteration": iteration, name: value}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items()
    ]
    rows.append({"iteration": storage.iter, **flatten_results_dict(results)})
    return TrainingHistory.read(os.path.join(output_dir, "metrics.json"), rows)
