"""YOLO's text files: a line for each object, in units of the image's width and height."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from .coco_writer import IMAGE_SUFFIXES, Found, FoundImage, FoundObject, image_size

__all__ = ["read_yolo"]


def read_yolo(source: str, split: str | None = None) -> Found:
    """Reads a dataset that a ``data.yaml`` describes: boxes, polygons or poses.

    The labels of ``.../images/a/1.jpg`` are in ``.../labels/a/1.txt``; an image without has no objects. A line is
    "class x y width height" (of the box's centre), "class x1 y1 x2 y2 x3 y3 ..." for a polygon, or, where
    ``kpt_shape: [K, 2 or 3]`` is given, "class x y width height" and K keypoints "px py" or "px py visibility".

    Args:
        source: ``data.yaml``, or the folder that it is in.
        split: "train", "val" or "test"; default "train".

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not as above; names the file, and the line.
    """
    path = Path(source)
    path = path / "data.yaml" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; YOLO's datasets have a data.yaml")
    with open(path) as file:
        settings = yaml.safe_load(file)
    names = settings.get("names") if isinstance(settings, dict) else None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise ValueError(f"{path}: it must have 'names', the names of the classes, got {names!r}")
    names = [str(name) for name in names]
    shape = settings.get("kpt_shape")
    if shape is not None and not (isinstance(shape, list) and len(shape) == 2 and shape[1] in (2, 3)):
        raise ValueError(f"{path}: kpt_shape must be [number of keypoints, 2 or 3], got {shape!r}")
    keypoints = _keypoint_names(settings, shape)
    description = {}
    flips = settings.get("flip_idx")
    if shape is not None and flips is not None:
        if sorted(flips) != list(range(shape[0])):
            raise ValueError(f"{path}: flip_idx must have each of 0 to {shape[0] - 1} once, got {flips!r}")
        description["flip_pairs"] = [[keypoints[a], keypoints[b]] for a, b in enumerate(flips) if a < b]
    images = _images(path, settings, split or "train")
    return Found(_read(images, names, shape), names, keypoints, description)


def _keypoint_names(settings: dict, shape) -> list[str]:
    if shape is None:
        return []
    names = settings.get("kpt_names")
    if isinstance(names, dict):  # a list for each class; all have the same keypoints
        names = next(iter(names.values()), None)
    return list(names) if names else [f"keypoint_{number}" for number in range(shape[0])]


def _images(path: Path, settings: dict, split: str) -> list[Path]:
    if settings.get(split) is None:
        raise ValueError(f"{path}: there is no {split!r} in it; it has {', '.join(settings)}")
    root = path.parent / settings.get("path", "")
    if not root.is_dir():  # the place where it once was, on another machine
        root = path.parent
    entries = settings[split] if isinstance(settings[split], list) else [settings[split]]
    found = []
    for entry in entries:
        place = next(
            (p for p in (root / entry, path.parent / entry, _within(path.parent, entry)) if p.exists()), None
        )
        if place is None:
            raise FileNotFoundError(f"{path}: its {split!r}, {root / entry}, does not exist")
        if place.is_file():
            lines = (line.strip() for line in place.read_text().splitlines())
            found += [place.parent / line for line in lines if line]
        else:
            found += [p for p in sorted(place.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
    return [p for p in found if not p.name.startswith(".")]


def _within(folder: Path, entry: str) -> Path:
    """Exports say ../train/images for train/images beside the yaml file."""
    return folder.joinpath(*[part for part in Path(entry).parts if part not in ("..", ".", os.sep)])


def _read(images: list[Path], names: list[str], shape) -> Iterator[FoundImage]:
    for image in images:
        height, width = image_size(str(image))
        labels = _labels_of(image)
        objects = []
        if labels.is_file():
            for number, line in enumerate(labels.read_text().splitlines(), 1):
                if line.strip():
                    try:
                        objects.append(_object(line, names, shape, height, width))
                    except ValueError as error:
                        raise ValueError(f"{labels}, line {number}: {error}") from None
        yield FoundImage(str(image), height, width, objects, str(labels))


def _labels_of(image: Path) -> Path:
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _object(line: str, names: list[str], shape, height: int, width: int) -> FoundObject:
    numbers = [float(part) for part in line.split()]
    label, values = int(numbers[0]), numbers[1:]
    if numbers[0] != label or not 0 <= label < len(names):
        raise ValueError(f"its class must be 0 to {len(names) - 1}, got {numbers[0]:g}")
    expected = 4 + (shape[0] * shape[1] if shape is not None else 0)
    if len(values) == expected:
        x, y, w, h = values[:4]
        one = FoundObject(names[label], [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height])
        if shape is not None:
            one.keypoints = _keypoints(values[4:], shape[1], height, width)
        return one
    if shape is None and len(values) >= 6 and len(values) % 2 == 0:
        return FoundObject(
            names[label], segmentation=[[v * (height if k % 2 else width) for k, v in enumerate(values)]]
        )
    kinds = f"{expected} numbers" if shape is not None else "4 numbers (a box), or 6 and more (a polygon)"
    raise ValueError(f"after the class there must be {kinds}, got {len(values)}")


def _keypoints(values: list[float], size: int, height: int, width: int) -> list[float]:
    keypoints: list[float] = []
    for k in range(0, len(values), size):
        x, y = values[k] * width, values[k + 1] * height
        visibility = values[k + 2] if size == 3 else 2 * (x > 0 or y > 0)
        # COCO's are indices of pixels, half a pixel less.
        keypoints += [x - 0.5, y - 0.5, visibility] if visibility > 0 else [0, 0, 0]
    return keypoints
