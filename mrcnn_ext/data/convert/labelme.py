"""LabelMe: a JSON file of shapes for each image."""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from .coco_writer import Found, FoundImage, FoundObject, image_size
from .grouping import ellipse, object_of_point

__all__ = ["read_labelme"]


def read_labelme(source: str, split: str | None = None) -> Found:
    """Reads a folder of LabelMe's files with the images beside them.

    Polygons, rectangles, circles and masks become objects, points their keypoints. Shapes of one ``group_id`` and
    label are one object. A point is a keypoint of the name that is its label, of the object of its group, or, without
    one, of the only object whose box it lies in. A point whose description or flag says "hidden" or "occluded" is a
    hidden keypoint. Keypoints are in the order of their names' first appearance.

    Args:
        source: folder, with those in it.
        split: must be None; LabelMe has none.

    Raises:
        FileNotFoundError: the folder or an image is missing.
        ValueError: a file is not LabelMe's, or a point belongs to no object or to several; names the file.
    """
    if split is not None:
        raise ValueError("LabelMe's format has no splits: give the folder of one")
    root = Path(source)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder")
    files = sorted(path for path in root.rglob("*.json") if not path.name.startswith("."))
    read = [(path, content) for path in files if (content := _load(path)) is not None]
    if not read:
        raise FileNotFoundError(f"{root}: there are no LabelMe files in it")
    points = (shape for _, content in read for shape in content["shapes"] if _kind(shape) == "point")
    names = list(dict.fromkeys(str(shape["label"]).strip() for shape in points))
    return Found([_image(path, content, names) for path, content in read], keypoints=names)


def _load(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: it is no JSON: {error}") from error
    if not isinstance(content, dict) or "shapes" not in content:
        return None  # another tool's
    for shape in content["shapes"]:
        if not isinstance(shape, dict) or not shape.get("label") or not isinstance(shape.get("points"), list):
            raise ValueError(f"{path}: a shape must have a 'label' and 'points'")
    return content


def _kind(shape: dict) -> str:
    return shape.get("shape_type") or "polygon"


def _image(path: Path, content: dict, names: list[str]) -> FoundImage:
    image = path.parent / str(content.get("imagePath", "")).replace("\\", "/")
    if not image.is_file():
        raise FileNotFoundError(f"{path}: its image {image} is missing")
    height, width = image_size(str(image))
    objects: dict[tuple, FoundObject] = {}
    points = []
    for number, shape in enumerate(content["shapes"]):
        if _kind(shape) == "point":
            points.append(shape)
            continue
        group = shape.get("group_id")
        key = (shape["label"], group) if group is not None else (number,)
        one = objects.setdefault(key, FoundObject(str(shape["label"]).strip(), extra={"group_id": group}))
        try:
            _add_shape(one, shape, height, width)
        except ValueError as error:
            raise ValueError(f"{path}: a {_kind(shape)} of {shape['label']!r}: {error}") from None
    for shape in points:
        one = object_of_point(
            shape["label"], shape["points"][0], shape.get("group_id"), list(objects.values()), str(path)
        )
        if one.keypoints is None:
            one.keypoints = [0] * (3 * len(names))
        place = 3 * names.index(str(shape["label"]).strip())
        x, y = shape["points"][0]
        # COCO's are indices of pixels, half a pixel less.
        one.keypoints[place : place + 3] = [x - 0.5, y - 0.5, 1 if _is_hidden(shape) else 2]
    found = list(objects.values())
    for one in found:
        one.extra = {}
    return FoundImage(str(image), height, width, found, str(path))


def _add_shape(one: FoundObject, shape: dict, height: int, width: int):
    points, kind = shape["points"], _kind(shape)
    if kind == "polygon":
        polygon = [float(v) for point in points for v in point]
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points[0], points[-1] if len(points) == 2 else points[2]
        if one.segmentation is None:
            x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
            one.bbox = [x0, y0, x1 - x0, y1 - y0]
        return
    elif kind == "circle":
        (x, y), (u, v) = points
        radius = math.hypot(u - x, v - y)
        polygon = ellipse(x, y, radius, radius)
    elif kind == "mask":
        one.segmentation, one.bbox = _mask(shape, height, width), None
        return
    else:
        raise ValueError("only polygons, rectangles, circles, masks and points can be converted")
    if isinstance(one.segmentation, dict):
        raise ValueError("its group has a mask already")
    one.segmentation = [*(one.segmentation or []), polygon]
    one.bbox = None


def _mask(shape: dict, height: int, width: int) -> dict:
    (x, y), _ = shape["points"]
    try:
        part = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"])))) > 0
    except (KeyError, binascii.Error, OSError) as error:
        raise ValueError(f"its mask cannot be read: {error}") from error
    mask = np.zeros((height, width), np.uint8, order="F")
    x, y = round(x), round(y)
    mask[y : y + part.shape[0], x : x + part.shape[1]] = part[: height - y, : width - x]
    return mask_util.encode(mask)


def _is_hidden(shape: dict) -> bool:
    flags = [flag for flag, value in (shape.get("flags") or {}).items() if value]
    said = " ".join([str(shape.get("description") or ""), *flags]).lower()
    return "hidden" in said or "occluded" in said
