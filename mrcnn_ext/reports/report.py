"""Reports from predictions in memory and from files."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.coco_file import CocoFile
from ..data.keypoint_names import are_coco_keypoints, mirrored_pairs
from ..data.problems import Problems
from ..evaluation.coco_metrics import TruthCOCO, oks_sigmas
from ..evaluation.result_files import read_results
from ..files import replacing
from .history import TrainingHistory
from .keypoints import keypoint_errors
from .matching import match_detections
from .page import render
from .precision import evaluate_tasks
from .scores import reliability, threshold_curves

__all__ = ["Evaluated", "report_of_files", "write_report"]


@dataclass
class Evaluated:
    """Predictions and what they were evaluated on.

    Attributes:
        dataset: its name.
        truth: the ground truth.
        records: predictions in COCO's results format.
        image_root: folder that the file names of the images start from; "" for no pictures.
        keypoint_names: (K,).
        sigmas: (K,) of object keypoint similarity; empty without keypoints.
        tasks: any of "bbox", "segm", "keypoints"; None for those that the records have.
        timing: lines for the table of times: {"images per second": "12.3"}.
    """

    dataset: str
    truth: TruthCOCO
    records: Sequence[dict]
    image_root: str = ""
    keypoint_names: Sequence[str] = ()
    sigmas: Sequence[float] = ()
    tasks: Sequence[str] | None = None
    timing: dict[str, str] = field(default_factory=dict)


def write_report(
    evaluated: Evaluated,
    output: str | os.PathLike,
    *,
    history: TrainingHistory | None = None,
    title: str = "",
    score_threshold: float = 0.5,
    num_pictures: int = 12,
) -> None:
    """Writes a report of predictions: one HTML file without external resources.

    Args:
        evaluated: the predictions.
        output: the file, replaced whole.
        history: of the training.
        title: over the page; default: the data set.
        score_threshold: of the detections that the confusion matrix and the pictures show.
        num_pictures: of each kind of error, at most.
    """
    history = history or TrainingHistory()
    truth = evaluated.truth
    categories = sorted(truth.cats.values(), key=lambda category: category["id"])
    matches = match_detections(
        list(truth.anns.values()),
        [record for record in evaluated.records if "bbox" in record],
        [category["id"] for category in categories],
        score_threshold=score_threshold,
    )
    results = evaluate_tasks(truth, evaluated.records, sigmas=evaluated.sigmas, tasks=evaluated.tasks)
    errors = []
    if evaluated.keypoint_names and "keypoints" in results:
        names = list(evaluated.keypoint_names)
        errors = keypoint_errors(matches.pairs, names, evaluated.sigmas, mirrored_pairs(names))
    page = render(
        evaluated,
        matches,
        results,
        {task: reliability(result.scores, result.correct) for task, result in results.items()},
        {
            task: threshold_curves(result.scores, result.correct, result.num_objects)
            for task, result in results.items()
        },
        errors,
        history,
        title=title or evaluated.dataset,
        score_threshold=score_threshold,
        num_pictures=num_pictures,
        written=datetime.datetime.now().astimezone(),
    )
    with replacing(output, "w") as file:
        file.write(page)


def report_of_files(
    annotations: str | os.PathLike,
    results: str | os.PathLike,
    output: str | os.PathLike,
    *,
    image_root: str | os.PathLike = "",
    metrics: str | os.PathLike = "",
    dataset: str = "",
    sigmas: Sequence[float] = (),
    **options,
) -> None:
    """Writes a report of files.

    Args:
        annotations: of COCO's format.
        results: of COCO's results format.
        output: the HTML file to write.
        image_root: folder that the file names of the images start from; "" for no pictures.
        metrics: a ``metrics.json`` of the training; "" for none.
        dataset: what ``metrics`` calls the data, where it has several data sets.
        sigmas: of the keypoints; COCO's 17 keypoints need none. Other keypoints without sigmas are left out of the
            average precisions.
        options: of `write_report`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is not what it should be, or the results are of other images or classes.
    """
    if os.path.realpath(output) in map(os.path.realpath, (annotations, results)):
        raise ValueError(f"{output} is what the report is made of: give another output")
    name = Path(annotations).stem
    problems = Problems(name, os.fspath(annotations))
    file = CocoFile(annotations, problems)
    content = file.content()
    problems.raise_errors()
    if not file.has_annotations:
        raise ValueError(
            f"{annotations} has no annotations: a report needs the truth to lay predictions beside"
        )
    truth = TruthCOCO(content)
    names = file.keypoint_names
    records = read_results(results, truth)
    if names and (len(sigmas) or are_coco_keypoints(names)):
        sigmas = oks_sigmas(sigmas, names, set(), name)
    history = _read_history(metrics, dataset) if metrics else None
    evaluated = Evaluated(dataset or name, truth, records, os.fspath(image_root), names, sigmas)
    write_report(evaluated, output, history=history, **options)


def _read_history(path, dataset):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    history = TrainingHistory.read(path)
    if history.datasets and dataset not in history.datasets:
        names = ", ".join(history.datasets)
        given = f"there is no {dataset!r} in it" if dataset else "say which one the results are of"
        raise ValueError(
            f"{path} has average precisions of several data sets ({names}): {given} (dataset, --dataset)"
        )
    return history
