"""What a dataset's annotation file does not say, described once: in the config or in a small file beside it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import yaml

from .annotations import plain_number
from .keypoint_names import skeleton_lines
from .keypoint_sigmas import checked_sigmas
from .problems import Unusable

__all__ = ["DESCRIPTION_KEYS", "read_description"]

DESCRIPTION_KEYS = ("names", "keypoints", "flip_pairs", "skeleton", "sigmas", "colors")


def read_description(
    description: dict | str | None,
    *,
    classes: Sequence[str],
    keypoints: Sequence[str],
    where: str,
    json_file: str | None = None,
) -> dict:
    """A checked description of a dataset.

    Keys, all of them optional:

    * ``names``: names of the classes, in the order of the category ids;
    * ``keypoints``: names of the keypoints;
    * ``flip_pairs``: [left, right] names that change places in a mirrored image; [] for none;
    * ``skeleton``: [a, b] pairs to draw lines between, names or numbers from 1 (from 0 if there is a 0);
    * ``sigmas``: one for each keypoint, the standard deviation of annotators relative to object scale, for object
      keypoint similarity; or "coco", which takes COCO's for the parts that COCO has and 0.05 for others, or
      "uniform", 0.05 for all; or {"annotators": [...]}, annotation files of the same images by other people, from
      which they are estimated (`estimate_sigmas`), with paths that start from the description's file;
    * ``colors``: [red, green, blue] from 0 to 255 of each class.

    Args:
        description: such a dict, or the path of a yaml or JSON file with it; None for none.
        classes, keypoints: names in the annotation file.
        where: the dataset, for messages.
        json_file: its annotation file.

    Returns:
        dict: as described, sigmas as numbers and the skeleton as pairs of names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is unknown, or its value is not as above.
    """
    if description is None:
        return {}
    source, folder = "its description", ""
    if isinstance(description, (str, os.PathLike)):
        source = f"its description {os.fspath(description)}"
        folder = os.path.dirname(description)
        if not os.path.isfile(description):
            raise FileNotFoundError(f"{where}: there is no description {os.fspath(description)}")
        with open(description) as file:
            try:
                description = yaml.safe_load(file)
            except yaml.YAMLError as error:
                raise ValueError(f"{where}: {source} is neither yaml nor JSON: {error}") from error
    if not hasattr(description, "items"):
        raise ValueError(
            f"{where}: {source} must have keys among {', '.join(DESCRIPTION_KEYS)}, got {description!r}"
        )
    described: dict = dict(description)  # type: ignore[arg-type]  # it has items
    for key in described:
        if key not in DESCRIPTION_KEYS:
            close = difflib.get_close_matches(str(key), DESCRIPTION_KEYS, 1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(DESCRIPTION_KEYS)}"
            raise ValueError(f"{where}: {source} has an unknown key {key!r}{hint}")
    try:
        return _checked(described, classes, keypoints, where, json_file, folder)
    except Unusable as problem:
        raise ValueError(f"{where}: {source}: {problem}") from None


def _checked(
    described: dict,
    classes: Sequence[str],
    keypoints: Sequence[str],
    where: str,
    json_file: str | None,
    folder: str,
) -> dict:
    if "names" in described:
        described["names"] = _strings("names", described["names"], len(classes), "classes")
    if "keypoints" in described:
        number = len(keypoints) or None
        keypoints = described["keypoints"] = _strings(
            "keypoints", described["keypoints"], number, "keypoints"
        )
    for key in ("flip_pairs", "skeleton", "sigmas"):
        if key in described and not keypoints:
            raise Unusable(f"{key} need keypoints, which neither it nor the annotation file names")
    if "flip_pairs" in described:
        described["flip_pairs"] = _flip_pairs(described["flip_pairs"], keypoints)
    if "skeleton" in described:
        described["skeleton"] = _skeleton(described["skeleton"], keypoints, where)
    if "sigmas" in described:
        sigmas = checked_sigmas(described["sigmas"], keypoints, where, json_file, folder)
        described["sigmas"] = _sigmas(sigmas, keypoints)
    if "colors" in described:
        described["colors"] = _colors(described["colors"], len(classes))
    return described


def _strings(key: str, value, number: int | None, of: str) -> list[str]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(v, str) for v in value):
        raise Unusable(f"{key} must be a list of names, got {value!r}")
    names = [v.strip() for v in value]
    if number is not None and len(names) != number:
        raise Unusable(f"{key} has {len(names)} names, the annotation file {number} {of}")
    if len(set(names)) < len(names):
        raise Unusable(f"{key} has a name twice: {value!r}")
    return names


def _flip_pairs(value, keypoints: Sequence[str]) -> list[tuple[str, str]]:
    if not isinstance(value, (list, tuple)):
        raise Unusable(f"flip_pairs must be a list of [left, right], got {value!r}")
    seen = set()
    for pair in value:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Unusable(f"flip_pairs must be a list of [left, right], got {pair!r}")
        for name in pair:
            if name not in keypoints:
                raise Unusable(
                    f"flip_pairs has {name!r}, which is not among the keypoints {', '.join(keypoints)}"
                )
            if name in seen:
                raise Unusable(f"flip_pairs has {name!r} twice")
            seen.add(name)
    return [tuple(pair) for pair in value]


def _skeleton(value, keypoints: Sequence[str], where: str) -> list[tuple[str, str]]:
    flat = [end for pair in value for end in pair] if isinstance(value, (list, tuple)) else None
    if flat and all(isinstance(end, str) for end in flat):
        unknown = [end for end in flat if end not in keypoints]
        if unknown:
            raise Unusable(
                f"skeleton has {unknown[0]!r}, which is not among the keypoints {', '.join(keypoints)}"
            )
        return [tuple(pair) for pair in value]
    return skeleton_lines(value, keypoints, where)


def _sigmas(value, keypoints: Sequence[str]) -> list[float]:
    if not isinstance(value, (list, tuple)) or len(value) != len(keypoints):
        raise Unusable(f"sigmas must be {len(keypoints)} numbers, one for each keypoint, got {value!r}")
    sigmas = [float(plain_number(v)) for v in value]
    if min(sigmas) <= 0:
        raise Unusable(f"sigmas must be greater than 0, got {value!r}")
    return sigmas


def _colors(value, number: int) -> list[tuple[int, int, int]]:
    right = isinstance(value, (list, tuple)) and all(
        isinstance(c, (list, tuple)) and len(c) == 3 and all(type(v) is int and 0 <= v <= 255 for v in c)
        for c in value
    )
    if not right or len(value) != number:
        raise Unusable(
            f"colors must be [red, green, blue] from 0 to 255 for each of {number} classes, got {value!r}"
        )
    return [tuple(color) for color in value]
