"""COCO's average precisions of each task and class, with the curves that they are the areas of."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.coco_metrics import TruthCOCO, evaluate_task

__all__ = ["TASK_NAMES", "ClassResult", "TaskResult", "evaluate_tasks"]

TASK_NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


@dataclass
class ClassResult:
    """One class in one task; values in [0, 1], NaN where there is no object.

    Attributes:
        name: of the class.
        num_objects: that count: neither crowds nor, for keypoints, objects without visible ones.
        ap, ap50, ap75: average precisions.
        curve: (101,) precision at IoU (for keypoints OKS) 0.5 over the recalls 0, 0.01, ..., 1.
    """

    name: str
    num_objects: int
    ap: float
    ap50: float
    ap75: float
    curve: np.ndarray


@dataclass
class TaskResult:
    """One task; values in [0, 1], NaN where there is no object.

    Attributes:
        task: "bbox", "segm" or "keypoints".
        summary: {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR"}; keypoints have no "APs".
        classes: those with objects, in the data set's order.
        recalls: (101,).
        curves: precision (101,) by IoU threshold 0.5, 0.75 and 0.9, the mean over the classes.
        scores: (N,) float64 of all detections that count.
        correct: (N,) bool, at IoU 0.5.
        num_objects: that count.
    """

    task: str
    summary: dict[str, float]
    classes: list[ClassResult]
    recalls: np.ndarray
    curves: dict[float, np.ndarray]
    scores: np.ndarray
    correct: np.ndarray
    num_objects: int

    @property
    def name(self) -> str:
        return TASK_NAMES[self.task]


def evaluate_tasks(
    truth: TruthCOCO,
    records: Sequence[dict],
    *,
    sigmas: Sequence[float] = (),
    tasks: Sequence[str] | None = None,
) -> dict[str, TaskResult]:
    """Evaluates predictions as COCO does.

    Args:
        truth: the ground truth.
        records: of COCO's results format.
        sigmas: of the keypoints; keypoints are left out without them.
        tasks: any of "bbox", "segm", "keypoints". Default: those that the records have.

    Returns:
        A `TaskResult` for each task.
    """
    if tasks is None:
        tasks = [task for task, key in _KEYS.items() if any(key in record for record in records)]
    results = {}
    for task in tasks:
        if task == "keypoints" and not len(sigmas):
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluate_task(truth, records, task, sigmas=sigmas)
        results[task] = _result(evaluation, truth, task)
    return results


_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_STATS = {
    "bbox": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5, "AR": 8},
    "keypoints": {"AP": 0, "AP50": 1, "AP75": 2, "APm": 3, "APl": 4, "AR": 5},
}
_STATS["segm"] = _STATS["bbox"]


def _result(evaluation, truth, task):
    thresholds = evaluation.params.iouThrs
    # (thresholds, recalls, classes) of objects of all sizes and of as many detections as count
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision = np.where(precision < 0, np.nan, precision)
    scores, correct, objects = _judged(evaluation)
    at = {round(float(threshold), 2): values for threshold, values in zip(thresholds, precision, strict=True)}
    counted = [k for k, number in enumerate(objects) if number]
    classes = [
        ClassResult(
            truth.cats[evaluation.params.catIds[k]]["name"],
            objects[k],
            *(float(values[..., k].mean()) for values in (precision, at[0.5], at[0.75])),
            at[0.5][:, k],
        )
        for k in counted
    ]
    stats = {name: float(evaluation.stats[place]) for name, place in _STATS[task].items()}
    return TaskResult(
        task,
        {name: value if value >= 0 else float("nan") for name, value in stats.items()},
        classes,
        evaluation.params.recThrs,
        {t: at[t][:, counted].mean(axis=1) for t in (0.5, 0.75, 0.9)} if counted else {},
        scores,
        correct,
        sum(objects),
    )


def _judged(evaluation):
    """Scores, whether right at the first threshold, and objects by class, of what pycocotools kept of each image."""
    params = evaluation.params
    scores, correct = [np.zeros(0)], [np.zeros(0, dtype=bool)]
    objects = [0] * len(params.catIds)
    has_keypoints = {a["category_id"] for a in evaluation.cocoGt.anns.values() if a.get("num_keypoints")}
    per_class = len(params.areaRng) * len(params.imgIds)
    for k in range(len(params.catIds)):
        for image in evaluation.evalImgs[
            k * per_class : k * per_class + len(params.imgIds)
        ]:  # all sizes come first
            if image is None:
                continue
            # Heads give keypoints to every class; those of classes without any are nobody's business.
            if params.iouType == "keypoints" and params.catIds[k] not in has_keypoints:
                continue
            objects[k] += int(np.sum(np.logical_not(image["gtIgnore"])))
            counts = ~np.asarray(image["dtIgnore"][0], dtype=bool)
            scores.append(np.asarray(image["dtScores"], dtype=np.float64)[counts])
            correct.append(np.asarray(image["dtMatches"][0])[counts] > 0)
    return np.concatenate(scores), np.concatenate(correct), objects
