"""How far scores can be trusted, and what a threshold on them costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Reliability", "ThresholdCurves", "reliability", "threshold_curves"]


@dataclass
class Reliability:
    """A reliability diagram of B bins of equal width.

    Attributes:
        edges: (B + 1,) of the bins.
        confidence: (B,) mean score of the detections in each bin; NaN in an empty one.
        precision: (B,) share of them that are right; NaN in an empty one.
        counts: (B,) int64.
        ece: expected calibration error: the mean of ``|precision - confidence|`` over all detections (Naeini et al.,
            AAAI 2015; of detections: Kuppers et al., CVPRW 2020). NaN without a detection.
    """

    edges: np.ndarray
    confidence: np.ndarray
    precision: np.ndarray
    counts: np.ndarray
    ece: float


def reliability(scores: Sequence[float], correct: Sequence[bool], bins: int = 10) -> Reliability:
    """
    Args:
        scores: (N,) in [0, 1]; larger ones, as some keypoint scores are, count as 1.
        correct: (N,) whether each detection is right.
        bins: of equal width.

    Returns:
        Reliability:
    """
    scores = np.clip(np.asarray(scores, dtype=np.float64), 0, 1)
    correct = np.asarray(correct, dtype=np.float64)
    edges = np.linspace(0, 1, bins + 1)
    place = np.minimum((scores * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, weights=scores, minlength=bins) / counts
        precision = np.bincount(place, weights=correct, minlength=bins) / counts
    gaps = np.abs(precision - confidence)[counts > 0] * counts[counts > 0]
    return Reliability(
        edges, confidence, precision, counts, float(gaps.sum() / len(scores)) if len(scores) else float("nan")
    )


@dataclass
class ThresholdCurves:
    """What is left above each score.

    Attributes:
        thresholds: (N,) falling: the scores themselves, each once.
        precision, recall, f1: (N,) of the detections with at least that score.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def best(self) -> tuple[float, float]:
        """The threshold of the highest F1, and that F1; (NaN, 0) without a detection."""
        if not len(self.f1):
            return float("nan"), 0.0
        place = int(self.f1.argmax())
        return float(self.thresholds[place]), float(self.f1[place])


def threshold_curves(scores: Sequence[float], correct: Sequence[bool], num_objects: int) -> ThresholdCurves:
    """
    Args:
        scores: (N,).
        correct: (N,) whether each detection found an object that no better one had found.
        num_objects: to be found.

    Returns:
        ThresholdCurves:
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(np.asarray(correct, dtype=np.int64)[order])
    # Equal scores are above a threshold together.
    last = (
        np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, dtype=int)
    )
    right, kept = right[last], last + 1
    precision = right / np.maximum(kept, 1)
    recall = right / num_objects if num_objects else np.zeros(len(last))
    f1 = 2 * right / np.maximum(kept + num_objects, 1)
    return ThresholdCurves(scores[last], precision, recall, f1)
