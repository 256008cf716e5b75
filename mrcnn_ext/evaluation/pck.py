"""Percentage of correct keypoints (PCK), as the papers on pose in single images and video give it. Runs without
detectron2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.keypoint_names import mirrored_pairs

__all__ = ["PCK", "box_sizes", "percentage_of_correct_keypoints"]


@dataclass(frozen=True)
class PCK:
    """Percentages of correct keypoints.

    Attributes:
        threshold: the a of PCK@a.
        names: of the K joints.
        per_joint: (K,) percent; NaN for a joint that nobody is labelled with.
        counts: (K,) how many of each were counted.
        mean: percent, the mean over the joints that were counted; NaN without any.
        pooled: percent of all the joints that were counted, whichever; NaN without any.
    """

    threshold: float
    names: tuple[str, ...]
    per_joint: np.ndarray
    counts: np.ndarray
    mean: float
    pooled: float

    def by_part(self) -> dict[str, float]:
        """Percent of each part of the body, left and right together: "shoulder", "elbow", ... in the joints' order."""
        part_of = {name: name for name in self.names}
        for left, right in mirrored_pairs(self.names):
            part = _without_side(left)
            part_of[left] = part_of[right] = part
        parts: dict[str, list[int]] = {}
        for k, name in enumerate(self.names):
            parts.setdefault(part_of[name], []).append(k)
        return {part: _mean(self.per_joint[where]) for part, where in parts.items()}


def percentage_of_correct_keypoints(
    predicted,
    truth,
    labelled,
    sizes,
    threshold: float = 0.2,
    names: Sequence[str] = (),
) -> PCK:
    """PCK@a: a joint is right if it lies within a times a person's size of its place.

    The size is the longer side of the person's box where Penn Action and sub-JHMDB are evaluated (LSTM Pose Machines,
    arXiv 1712.06316; a = 0.2); `box_sizes` gives it. With the size of the head it is PCKh, with that of the torso
    PCK of the torso.

    Args:
        predicted: (N, K, 2) pixels, for the N people whose box was given; NaN for what was not found, which is wrong.
        truth: (N, K, 2) pixels.
        labelled: (N, K) bool, which joints count. Those that are occluded, or those that are not, can be told apart
            with it.
        sizes: (N,) pixels.
        threshold: a.
        names: (K,) of the joints; default "0", "1", ....

    Raises:
        ValueError: shapes that do not fit, a size that is not above 0, or no threshold above 0.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    labelled, sizes = np.asarray(labelled, dtype=bool), np.asarray(sizes, dtype=np.float64)
    if predicted.ndim != 3 or predicted.shape[2] != 2 or predicted.shape != truth.shape:
        raise ValueError(
            f"predicted and truth must both be (N, K, 2), got {predicted.shape} and {truth.shape}"
        )
    people, joints = predicted.shape[:2]
    if labelled.shape != (people, joints) or sizes.shape != (people,):
        raise ValueError(
            f"labelled must be ({people}, {joints}) and sizes ({people},), got {labelled.shape} and {sizes.shape}"
        )
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0, got {threshold}")
    counting = labelled.any(1)
    if not (sizes[counting] > 0).all():
        raise ValueError(f"sizes must be above 0 pixels, got {sizes[counting & ~(sizes > 0)][0]}")
    names = tuple(names) or tuple(str(k) for k in range(joints))
    if len(names) != joints:
        raise ValueError(f"there are {joints} joints and {len(names)} names")
    distances = np.linalg.norm(predicted - truth, axis=2)
    right = labelled & (distances <= threshold * sizes[:, None])  # False where NaN
    counts = labelled.sum(0)
    with np.errstate(invalid="ignore"):
        per_joint = 100 * right.sum(0) / counts
    pooled = 100 * float(right.sum()) / int(counts.sum()) if counts.sum() else float("nan")
    return PCK(threshold, names, per_joint, counts, _mean(per_joint), pooled)


def box_sizes(boxes) -> np.ndarray:
    """The longer side (N,) of boxes (N, 4), x, y, width, height."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return boxes[:, 2:].max(1)


def _mean(values: np.ndarray) -> float:
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def _without_side(name: str) -> str:
    for word in ("left", "right", "l", "r"):
        for part in (f"{word}_", f"_{word}"):
            lower = name.lower()
            if lower.startswith(part):
                return name[len(part) :]
            if lower.endswith(part):
                return name[: -len(part)]
    return name
