"""How unsteady keypoints of a video are: the error of their acceleration. Runs without detectron2."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["acceleration_errors", "jitter"]


def acceleration_errors(predicted, truth, valid) -> np.ndarray:
    """The norm of the second difference over time of what was predicted, less that of the truth.

    An error that stays the same from frame to frame, or grows evenly, counts nothing; one that leaps counts in full
    (the acceleration error of Kanazawa et al., arXiv 1812.01601, in pixels).

    Args:
        predicted: (T, K, 2) pixels, joints of one person in T frames that follow each other.
        truth: (T, K, 2) pixels.
        valid: (T, K) bool, where both are there.

    Returns:
        (T - 2, K) pixels per frame squared; NaN where one of the three frames is not valid. (0, K) for T < 3.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    valid = np.asarray(valid, dtype=bool)
    if predicted.ndim != 3 or predicted.shape != truth.shape or valid.shape != predicted.shape[:2]:
        raise ValueError(
            "predicted and truth must be (T, K, 2) and valid (T, K), got "
            f"{predicted.shape}, {truth.shape} and {valid.shape}"
        )
    if len(predicted) < 3:
        return np.zeros((0, predicted.shape[1]))
    error = np.where(valid[..., None], predicted - truth, np.nan)
    return np.linalg.norm(error[2:] - 2 * error[1:-1] + error[:-2], axis=2)


def jitter(tracks: Iterable[tuple]) -> float:
    """The mean of `acceleration_errors` over all joints and frames of several people.

    Args:
        tracks: (predicted, truth, valid) of each, as `acceleration_errors` takes them.

    Returns:
        Pixels per frame squared; NaN if no joint is valid in three frames in a row.
    """
    errors = [acceleration_errors(*track).ravel() for track in tracks]
    every = np.concatenate(errors) if errors else np.zeros(0)
    every = every[~np.isnan(every)]
    return float(every.mean()) if every.size else float("nan")
