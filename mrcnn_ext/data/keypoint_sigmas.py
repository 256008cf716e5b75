"""Sigmas of object keypoint similarity: by name, or from objects that several people have annotated."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import numpy as np

from .coco_file import CocoFile
from .keypoint_names import suggested_sigmas
from .problems import Problems, Unusable

__all__ = ["NAMED_SIGMAS", "estimate_sigmas", "named_sigmas"]

UNIFORM_SIGMA = 0.05
NAMED_SIGMAS = ("coco", "uniform")
_SAME_OBJECT = 0.5  # IoU of boxes
_FEWEST = 10  # pairs of a keypoint


def named_sigmas(value, keypoints: Sequence[str], where: str):
    """Sigmas by name: "coco", COCO's for the parts that COCO has and 0.05 for others, or "uniform", 0.05 for all.
    What was taken is told.

    Args:
        value: a name, a list of one name, or anything else, which is given back.
        keypoints: their names.
        where: the dataset or key, for messages.

    Raises:
        ValueError: the name is unknown, or nobody knows the names of the keypoints.
    """
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], str):
        (value,) = value
    if not isinstance(value, str):
        return value
    if value not in NAMED_SIGMAS:
        raise ValueError(f"{where}: sigmas must be numbers, 'coco' or 'uniform', got {value!r}")
    if not keypoints:
        raise ValueError(
            f"{where}: the sigmas {value!r} need the names of the keypoints, which the dataset lacks: give numbers"
        )
    sigmas = suggested_sigmas(keypoints) if value == "coco" else [UNIFORM_SIGMA] * len(keypoints)
    logging.getLogger(__name__).warning("%s: sigmas of its keypoints are %s (%r)", where, sigmas, value)
    return sigmas


def estimate_sigmas(files: Sequence[str], keypoints: Sequence[str], where: str) -> list[float]:
    """Sigmas from the same images annotated by several people.

    As COCO's (https://cocodataset.org/#keypoints-eval): the root of the mean of d^2 / area, where d is the distance of
    an annotation from the truth. Two annotators' errors are independent, so that d^2 is half of the squared distance
    between them. Objects of two files are the same if they are of one category, in images of one file name, and their
    boxes have an IoU of 0.5. A keypoint counts where both have marked it.

    Args:
        files: annotation files of COCO's format, an annotator's each.
        keypoints: their names, which all files have.
        where: the dataset, for messages.

    Returns:
        One for each keypoint. Those that fewer than 10 pairs of annotations have get the median of the others', which
        is told.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, or no keypoint has 10 pairs.
    """
    annotators = [_objects_by_image(file, keypoints, where) for file in files]
    found: list[list[float]] = [[] for _ in keypoints]
    for number, first in enumerate(annotators):
        for second in annotators[number + 1 :]:
            for name in first.keys() & second.keys():
                for one, other in _same_objects(first[name], second[name]):
                    _add_distances(one, other, found)
    sigmas = [math.sqrt(sum(v) / len(v) / 2) if len(v) >= _FEWEST else 0.0 for v in found]
    known = [sigma for sigma in sigmas if sigma > 0]
    if not known:
        raise ValueError(
            f"{where}: sigmas cannot be estimated from {', '.join(map(str, files))}: no keypoint is marked in "
            f"{_FEWEST} objects by two people (the same image file name and category, boxes with an IoU of 0.5)"
        )
    logger = logging.getLogger(__name__)
    lacking = [name for name, sigma in zip(keypoints, sigmas, strict=True) if not sigma]
    if lacking:
        logger.warning(
            "%s: fewer than %d pairs of annotations have %s: their sigma is the median of the others'",
            where,
            _FEWEST,
            ", ".join(lacking),
        )
    sigmas = [float(f"{sigma or np.median(known):.3g}") for sigma in sigmas]
    logger.warning(
        "%s: sigmas of its keypoints are %s, from %d to %d pairs of annotations each",
        where,
        sigmas,
        min(map(len, found)),
        max(map(len, found)),
    )
    return sigmas


def _objects_by_image(path: str, keypoints: Sequence[str], where: str) -> dict[str, list[dict]]:
    problems = Problems(os.path.basename(path), os.fspath(path))
    file = CocoFile(path, problems)
    if file.num_keypoints != len(keypoints):
        raise ValueError(
            f"{where}: sigmas cannot be estimated from {path}: it has {file.num_keypoints or 0} keypoints, not "
            f"{len(keypoints)}"
        )
    by_image: dict[str, list[dict]] = {}
    names = {category["id"]: category["name"] for category in file.categories}
    for annotation in file.annotations():
        if not annotation["iscrowd"] and "keypoints" in annotation:
            annotation["category"] = names[annotation["category_id"]]
            by_image.setdefault(file.images[annotation["image_id"]]["file_name"], []).append(annotation)
    return by_image


def _same_objects(first: list[dict], second: list[dict]):
    """Pairs, the closest first; each object is in one."""
    pairs = sorted(
        (
            (_iou(a["bbox"], b["bbox"]), i, k)
            for i, a in enumerate(first)
            for k, b in enumerate(second)
            if a["category"] == b["category"]
        ),
        reverse=True,
    )
    taken_first, taken_second = set(), set()
    for iou, i, k in pairs:
        if iou >= _SAME_OBJECT and i not in taken_first and k not in taken_second:
            taken_first.add(i)
            taken_second.add(k)
            yield first[i], second[k]


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(0.0, w) * max(0.0, h)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


def _add_distances(one: dict, other: dict, found: list[list[float]]):
    area = (one["area"] + other["area"]) / 2
    for k, squares in enumerate(found):
        (x0, y0, v0), (x1, y1, v1) = (a["keypoints"][3 * k : 3 * k + 3] for a in (one, other))
        if v0 > 0 and v1 > 0:
            squares.append(((x0 - x1) ** 2 + (y0 - y1) ** 2) / area)


def checked_sigmas(
    value, keypoints: Sequence[str], where: str, json_file: str | None, folder: str
) -> list[float]:
    """The "sigmas" of a description: numbers, a name, or {"annotators": [files]}.

    Raises:
        Unusable: they are none of these.
    """
    if isinstance(value, str):
        if value not in NAMED_SIGMAS:
            raise Unusable(
                f"sigmas must be numbers, 'coco', 'uniform' or {{annotators: [files]}}, got {value!r}"
            )
        return named_sigmas(value, keypoints, where)
    if isinstance(value, dict):
        files = value.get("annotators")
        if set(value) != {"annotators"} or not isinstance(files, list) or not files:
            raise Unusable(
                f"sigmas must be numbers, 'coco', 'uniform' or {{annotators: [files]}}, got {value!r}"
            )
        if json_file is None:
            raise Unusable("sigmas can be estimated for a dataset with an annotation file alone")
        files = [os.path.join(folder, os.path.expanduser(str(file))) for file in files]
        return estimate_sigmas([json_file, *files], keypoints, where)
    return value
