"""Average precisions with bootstrap intervals, and of several runs beside each other. Runs without detectron2.

The images of a dataset are a sample: another sample would have given another AP. The bootstrap (Efron, 1979) draws
images with replacement and evaluates each draw; the middle of the APs is the interval. Runs are compared on the same
draws, so that what is hard for all of them cancels out of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

__all__ = ["Interval", "Matches", "average_precisions", "compare", "draw_images"]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass
class Matches:
    """Which detections were right, of one class, all object sizes.

    Attributes:
        images: (D,) place of the image of each detection, best score first.
        right: (T, D) whether it was matched, by IoU threshold.
        ignored: (T, D) whether it counts neither way.
        objects: (I,) how many objects each image has that count.
        thresholds: (T,) of the IoU.
    """

    images: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    thresholds: np.ndarray

    @classmethod
    def of(cls, evaluation: COCOeval) -> list[Matches]:
        """Of each class.

        Args:
            evaluation: by pycocotools' own class, of which ``evaluate`` was called; the compiled one keeps no matches.
        """
        params = evaluation.params
        sizes, images = len(params.areaRng), len(params.imgIds)
        most, thresholds = params.maxDets[-1], np.asarray(params.iouThrs)
        all_sizes = list(params.areaRngLbl).index("all")
        matches = []
        for k in range(len(params.catIds)):
            start = (k * sizes + all_sizes) * images
            found = [
                (i, image) for i, image in enumerate(evaluation.evalImgs[start : start + images]) if image
            ]
            objects = np.zeros(images)
            for i, image in found:
                objects[i] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
            scores = np.concatenate([image["dtScores"][:most] for _, image in found] or [[]])
            order = np.argsort(-scores, kind="mergesort")  # pycocotools': equal scores by image
            none = np.zeros((len(thresholds), 0), dtype=bool)
            right = np.concatenate([none, *(image["dtMatches"][:, :most] != 0 for _, image in found)], axis=1)
            ignored = np.concatenate(
                [none, *(image["dtIgnore"][:, :most].astype(bool) for _, image in found)], axis=1
            )
            of_images = np.concatenate([[], *(np.full(len(d["dtScores"][:most]), i) for i, d in found)])
            matches.append(
                cls(
                    of_images.astype(np.int64)[order], right[:, order], ignored[:, order], objects, thresholds
                )
            )
        return matches


def draw_images(images: int, samples: int, seed: int = 0) -> np.ndarray:
    """How often each image is in each draw: (samples + 1, images); the first are the images as they are."""
    random = np.random.default_rng(seed)
    draws = random.multinomial(images, np.full(images, 1 / images), size=samples) if images else []
    return np.concatenate([np.ones((1, images)), np.reshape(draws, (samples, images))])


def average_precisions(matches: Sequence[Matches], draws: np.ndarray) -> np.ndarray:
    """AP by class and IoU threshold of each draw: (K, T, B) between 0 and 1, NaN where a draw has no object.

    Args:
        matches: of each class.
        draws: (B, I) how often each image counts.
    """
    recalls = np.linspace(0.0, 1.0, 101)  # COCO's
    found = [_class_precisions(m, draws, recalls) for m in matches]
    return np.stack(found) if found else np.zeros((0, 0, len(draws)))


def _class_precisions(matches: Matches, draws, recalls):
    objects = draws @ matches.objects  # (B,)
    weights = draws[:, matches.images]  # (B, D)
    found = np.full((len(matches.thresholds), len(draws)), np.nan)
    for t in range(len(matches.thresholds)):
        counted = weights * ~matches.ignored[t]
        right = np.cumsum(counted * matches.right[t], axis=1)
        wrong = np.cumsum(counted * ~matches.right[t], axis=1)
        precision = right / np.maximum(right + wrong, np.spacing(1))
        # Precision at a recall is the best at that recall or beyond.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for b in np.flatnonzero(objects > 0):
            places = np.searchsorted(right[b] / objects[b], recalls, side="left")
            reached = places < best.shape[1]
            found[t, b] = best[b, places[reached]].sum() / len(recalls)
    return found


def compare(
    runs: Sequence[Sequence[Matches]], samples: int = 300, seed: int = 0, level: float = 0.95
) -> list[dict[str, dict[str, Interval]]]:
    """AP, AP50 and AP75 of each run, in percent, with their intervals.

    Args:
        runs: matches of each run by class, on the same images.
        samples: draws of images.
        seed: of the draws.
        level: of confidence.

    Returns:
        For each run "AP", "AP50", "AP75" -> "value", and "difference" from the first run (absent for the first).

    Raises:
        ValueError: the runs are of different images or classes.
    """
    shapes = {(len(run), len(run[0].objects) if run else 0) for run in runs}
    if len(shapes) > 1:
        raise ValueError(f"the runs are of different (classes, images): {sorted(shapes)}")
    draws = draw_images(next(iter(shapes))[1] if shapes else 0, samples, seed)
    summaries, rows = [], []
    for run in runs:
        precisions = average_precisions(run, draws)
        thresholds = run[0].thresholds if run else np.zeros(0)
        summary = {
            name: _mean(precisions[:, keep])
            for name, keep in (
                ("AP", np.ones(len(thresholds), dtype=bool)),
                ("AP50", np.isclose(thresholds, 0.5)),
                ("AP75", np.isclose(thresholds, 0.75)),
            )
        }
        row = {name: {"value": _interval(values, level)} for name, values in summary.items()}
        if summaries:
            for name, values in summary.items():
                row[name]["difference"] = _interval(values - summaries[0][name], level)
        summaries.append(summary)
        rows.append(row)
    return rows


def _mean(precisions):
    """Over classes and thresholds, in percent: (B,)."""
    known = ~np.isnan(precisions)
    count = known.sum(axis=(0, 1))
    total = np.where(known, precisions, 0).sum(axis=(0, 1))
    return np.where(count > 0, 100 * total / np.maximum(count, 1), np.nan)


def _interval(values, level):
    """Of the first, the images as they are, among the others, the draws."""
    drawn = values[1:][~np.isnan(values[1:])]
    if not len(drawn):
        return Interval(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values[0]), float(low), float(high))
