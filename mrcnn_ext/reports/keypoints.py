"""How far off each keypoint is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["KeypointError", "keypoint_errors"]


@dataclass
class KeypointError:
    """One keypoint over all objects; NaN where none of them shows it.

    Attributes:
        name: of the keypoint.
        count: objects in which it is annotated as visible or hidden.
        pixels: median distance in pixels.
        relative: (3,) quartiles (25, 50, 75 %) of the distance over the object's scale, which is the root of its area.
        similarity: mean of ``exp(-d^2 / (2 s^2 (2 sigma)^2))``, the keypoint's part in object keypoint similarity; NaN
            without sigmas.
        swapped: share that lies nearer to the true place of its mirrored keypoint than to its own; NaN without one.
    """

    name: str
    count: int
    pixels: float
    relative: np.ndarray
    similarity: float
    swapped: float


def keypoint_errors(
    pairs: Sequence[tuple[dict, dict]],
    names: Sequence[str],
    sigmas: Sequence[float] = (),
    mirrored: Sequence[tuple[str, str]] = (),
) -> list[KeypointError]:
    """
    Args:
        pairs: (annotation, record) of objects that were found, of `Matches.pairs` say. Those whose annotation has no
            visible keypoint count for none.
        names: of the K keypoints.
        sigmas: (K,) of object keypoint similarity.
        mirrored: pairs of names, left and right.

    Returns:
        One `KeypointError` for each name.
    """
    truth, found, scale = _arrays(pairs, len(names))
    labelled = truth[:, :, 2] > 0
    distance = np.linalg.norm(found - truth[:, :, :2], axis=2)
    places = {name: k for k, name in enumerate(names)}
    other = {
        places[a]: places[b]
        for pair in mirrored
        for a, b in (pair, pair[::-1])
        if a in places and b in places
    }
    errors = []
    for k, name in enumerate(names):
        seen = labelled[:, k]
        d, s = distance[seen, k], scale[seen]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = d / s
        similarity = float("nan")
        if len(sigmas) and len(d):
            similarity = float(np.exp(-(d**2) / (2 * s**2 * (2 * sigmas[k]) ** 2 + np.spacing(1))).mean())
        errors.append(
            KeypointError(
                name,
                int(seen.sum()),
                float(np.median(d)) if len(d) else float("nan"),
                np.percentile(relative, [25, 50, 75]) if len(d) else np.full(3, np.nan),
                similarity,
                _swapped(truth, found, labelled, k, other.get(k)),
            )
        )
    return errors


def _arrays(pairs, num_keypoints):
    """Truth (N, K, 3), found (N, K, 2), scale (N,) of the pairs with a visible keypoint."""
    truth, found, scale = [], [], []
    for annotation, record in pairs:
        if any(len(item.get("keypoints") or ()) != 3 * num_keypoints for item in (annotation, record)):
            continue
        points = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
        if not (points[:, 2] > 0).any():
            continue
        truth.append(points)
        found.append(np.array(record["keypoints"], dtype=np.float64).reshape(-1, 3)[:, :2])
        scale.append(np.sqrt(annotation["area"]))
    shape = (-1, num_keypoints)
    return np.reshape(truth, (*shape, 3)), np.reshape(found, (*shape, 2)), np.array(scale)


def _swapped(truth, found, labelled, k, other):
    if other is None:
        return float("nan")
    both = labelled[:, k] & labelled[:, other]
    if not both.any():
        return float("nan")
    own, mirrored = (np.linalg.norm(found[both, k] - truth[both, place, :2], axis=1) for place in (k, other))
    return float((mirrored < own).mean())
