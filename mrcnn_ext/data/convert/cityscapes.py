"""Cityscapes' layout with any classes: an image of instance numbers, or a file of polygons, for each image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import yaml
from PIL import Image

from .coco_writer import IMAGE_SUFFIXES, Found, FoundImage, FoundObject, image_size

__all__ = ["read_cityscapes"]

_INSTANCES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    29: "caravan",
    30: "trailer",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
# Cityscapes' labels of regions, which are no objects.
_REGIONS = frozenset(
    "unlabeled,ego vehicle,rectification border,out of roi,static,dynamic,ground,road,sidewalk,parking,rail track,"
    "building,wall,fence,guard rail,bridge,tunnel,pole,polegroup,traffic light,traffic sign,vegetation,terrain,sky,"
    "license plate".split(",")
)
_CLASSES = "classes.yaml"
_PER_CLASS = 1000


def read_cityscapes(source: str, split: str | None = None) -> Found:
    """Reads ``leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`` and ``gtFine/<split>/<city>/<name>_gtFine_...``.

    Of ``..._instanceIds.png`` a pixel of 1000 and more is object number value % 1000 of class value // 1000; below 1000
    it is a region, and of a class of objects a crowd. Without it, ``..._polygons.json`` is read, in which later objects
    lie over earlier ones; a label that ends in "group" is a crowd, and Cityscapes' labels of regions (road, sky, ...)
    are left out. An object stays a polygon if nothing lies over it, and becomes a mask (RLE, which wants
    ``INPUT.MASK_FORMAT: bitmask``) otherwise.

    The classes are Cityscapes', or, for ``..._instanceIds.png``, those of a file ``classes.yaml`` in the folder,
    {number: name} of the classes of objects.

    Args:
        source: the folder with ``leftImg8bit/`` and ``gtFine/``.
        split: "train", "val", ...; default all.

    Raises:
        FileNotFoundError: a folder or the truth of an image is missing.
        ValueError: a file is not as above, or a class number has no name; names the file.
    """
    root = Path(source)
    folder = root / "leftImg8bit" / (split or "")
    for place in (folder, root / "gtFine" / (split or "")):
        if not place.is_dir():
            raise FileNotFoundError(
                f"{place}: there is no such folder; leftImg8bit/ and gtFine/ are expected"
            )
    images = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    return Found(_read(images, root, _class_names(root / _CLASSES)))


def _class_names(path: Path) -> dict[int, str]:
    if not path.is_file():
        return _INSTANCES
    names = yaml.safe_load(path.read_text())
    right = (
        isinstance(names, dict)
        and names
        and all(type(k) is int and isinstance(v, str) for k, v in names.items())
    )
    if not right:
        raise ValueError(
            f"{path}: it must have names of classes by their numbers, 24: person; got {names!r:.60}"
        )
    return names


def _read(images: list[Path], root: Path, names: dict[int, str]) -> Iterator[FoundImage]:
    for path in images:
        stem = path.stem.removesuffix("_leftImg8bit")
        place = root / "gtFine" / path.parent.relative_to(root / "leftImg8bit")
        height, width = image_size(str(path))
        for ending, read in (("instanceIds.png", _of_numbers), ("polygons.json", _of_polygons)):
            places = (place / f"{stem}_gtFine_{ending}", place / f"{stem}_{ending}")
            truth = next((path for path in places if path.is_file()), None)
            if truth is not None:
                yield FoundImage(str(path), height, width, read(truth, (height, width), names), str(truth))
                break
        else:
            raise FileNotFoundError(
                f"{place / stem}_gtFine_instanceIds.png, or ..._polygons.json, the truth of {path}, is missing"
            )


def _of_numbers(path: Path, size: tuple[int, int], names: dict[int, str]) -> list[FoundObject]:
    try:
        with Image.open(path) as image:
            numbers = np.array(image)
    except OSError as error:
        raise ValueError(f"{path}: it cannot be read as an image: {error}") from error
    if numbers.shape != size:
        raise ValueError(
            f"{path}: it must be of one channel and of its image's height and width, {size}, got {numbers.shape}"
        )
    objects = []
    for number in np.unique(numbers).tolist():
        label = number // _PER_CLASS if number >= _PER_CLASS else number
        if label not in names:
            if number >= _PER_CLASS:
                raise ValueError(
                    f"{path}: class {label}, of pixels with {number}, has no name: write a file {_CLASSES} in the "
                    f"folder above gtFine, with lines such as {label}: person"
                )
            continue
        mask = mask_util.encode(np.asfortranarray(numbers == number, dtype=np.uint8))
        objects.append(
            FoundObject(names[label], segmentation=mask, extra={"iscrowd": int(number < _PER_CLASS)})
        )
    return objects


def _of_polygons(path: Path, size: tuple[int, int], names: dict[int, str]) -> list[FoundObject]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: it is no JSON: {error}") from error
    shapes = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise ValueError(f"{path}: it must have 'objects', a list of {{label, polygon}}")
    there = (content.get("imgHeight", size[0]), content.get("imgWidth", size[1]))
    if there != size:
        raise ValueError(f"{path}: it is of an image of height and width {there}, the image has {size}")
    over = np.zeros(size, bool)  # what lies in front
    objects = []
    for shape in reversed(
        [shape for shape in shapes if not (isinstance(shape, dict) and shape.get("deleted"))]
    ):
        one, mask = _of_shape(shape, size, path)
        if one is not None and (mask & ~over).any():
            if one.extra["iscrowd"] or (mask & over).any():
                one.segmentation = mask_util.encode(np.asfortranarray(mask & ~over, dtype=np.uint8))
            objects.append(one)
        over |= mask
    return objects[::-1]


def _of_shape(shape, size: tuple[int, int], path: Path) -> tuple[FoundObject | None, np.ndarray]:
    """The object, None for a region, and its pixels."""
    label = shape.get("label") if isinstance(shape, dict) else None
    polygon = shape.get("polygon") if isinstance(shape, dict) else None
    try:
        points = np.array(polygon, float).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.zeros((0, 2))
    if not isinstance(label, str) or not label or len(points) < 3:
        raise ValueError(
            f"{path}: an object must have a 'label' and a 'polygon' of three points [x, y] or more, got {shape!r:.60}"
        )
    mask = mask_util.decode(mask_util.frPyObjects([points.reshape(-1).tolist()], *size))[..., 0]
    crowd = label.endswith("group")
    if label in _REGIONS:
        return None, mask.astype(bool)
    one = FoundObject(
        label.removesuffix("group"),
        segmentation=[points.reshape(-1).tolist()],
        extra={"iscrowd": int(crowd)},
    )
    return one, mask.astype(bool)
