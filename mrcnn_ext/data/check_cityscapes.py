"""Looks at a dataset of Cityscapes' layout before it is loaded, and before it is evaluated hours later."""

from __future__ import annotations

import os

from .problems import Problems

__all__ = ["check_cityscapes_tree"]

_IMAGE = "leftImg8bit.png"
_TRUTH = ("gtFine_instanceIds.png", "gtFine_labelIds.png", "gtFine_polygons.json")


def check_cityscapes_tree(name: str, metadata, problems: Problems) -> None:
    """Compares the trees of images and ground truth, and the classes with those that Cityscapes evaluates.

    Args:
        name: of the dataset.
        metadata: with "image_dir", "gt_dir", "thing_classes".
        problems: takes what is found.

    """
    image_dir, gt_dir = os.fspath(metadata.image_dir), os.fspath(metadata.gt_dir)
    for folder in (image_dir, gt_dir):
        if not os.path.isdir(folder):
            return  # the loader says how to get it
    images = _stems(image_dir, (_IMAGE,), problems)
    truth = _stems(gt_dir, _TRUTH, None)
    for stem in images:
        missing = [suffix for suffix in _TRUTH if suffix not in truth.get(stem, ())]
        if missing:
            path = os.path.join(gt_dir, stem + missing[0])
            problems.error("truth", f"image {stem}{_IMAGE}", f"{path} is missing", missing_file=True)
    for stem, suffixes in truth.items():
        if stem not in images and _TRUTH[0] in suffixes:
            problems.error(
                "image",
                os.path.join(gt_dir, stem + _TRUTH[0]),
                f"there is no image {os.path.join(image_dir, stem + _IMAGE)} for it, and the evaluation expects "
                "predictions for each: remove the one or add the other",
            )
    _check_classes(metadata.get("thing_classes", ()), problems)


def _stems(folder: str, suffixes: tuple[str, ...], problems: Problems | None) -> dict[str, list[str]]:
    """What is there of each image: {"city/city_000000_000019_": [suffix, ...]}. Other files are errors, because
    detectron2's loader takes them for a city or an image; without ``problems`` they do not matter."""
    found: dict[str, list[str]] = {}
    for city in sorted(os.listdir(folder)):
        path = os.path.join(folder, city)
        if not os.path.isdir(path):
            _stray(path, "a folder for each city", problems)
            continue
        for file in sorted(os.listdir(path)):
            suffix = next((s for s in suffixes if file.endswith(s)), None)
            if suffix is not None:
                found.setdefault(f"{city}/{file[: -len(suffix)]}", []).append(suffix)
            else:
                _stray(os.path.join(path, file), f"files that end in {_IMAGE}", problems)
    return found


def _stray(path: str, expected: str, problems: Problems | None):
    if problems is not None:
        problems.error("stray", path, f"it does not belong there: only {expected} may; remove it")


def _check_classes(classes, problems: Problems):
    try:
        from cityscapesscripts.helpers.labels import labels
    except ImportError:
        return  # the loader says how to get it
    known = [label.name for label in labels if label.hasInstances and not label.ignoreInEval]
    unknown = [name for name in classes if name not in known]
    if unknown:
        problems.error(
            "class",
            "",
            f"Cityscapes has no instances of {', '.join(map(repr, unknown))} to evaluate: thing_classes must be "
            f"among {', '.join(known)}",
        )
