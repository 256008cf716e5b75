"""CVAT for images 1.1: one XML file for all images."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pycocotools.mask as mask_util

from .coco_writer import Found, FoundImage, FoundObject, image_size
from .grouping import ellipse, object_of_point, rotated

__all__ = ["read_cvat"]

_SHAPES = ("box", "polygon", "ellipse", "mask", "skeleton")
_SMALLEST_SIDE = 2.0  # of the box of a skeleton, pixels


def read_cvat(source: str, split: str | None = None) -> Found:
    """Reads ``annotations.xml`` of an export "CVAT for images 1.1", with the images beside it or in ``images/``.

    Boxes, polygons, ellipses, masks and skeletons become objects; turned boxes become polygons. Shapes of one group and
    label are one object. Points are keypoints of an object as in `read_labelme`: of its group, or else of the only one
    whose box they lie in; of several points of one label they are called label_1, label_2, .... The points of a
    skeleton are keypoints of their labels; its box is that of a "box" in its group, or else what its points span.
    Points that are "outside" are not there, "occluded" ones are hidden. Tags are left out.

    Args:
        source: the XML file, or its folder.
        split: of the images those of this subset; default all.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is not as above; names the file and image.
    """
    path = Path(source)
    path = path / "annotations.xml" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; CVAT's exports have an annotations.xml")
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: it is no XML: {error}") from error
    if tree.tag != "annotations":
        raise ValueError(f"{path}: it is none of CVAT's: its root is <{tree.tag}>, not <annotations>")
    if tree.find("track") is not None:
        raise ValueError(f'{path}: it is a "CVAT for video" export: choose "CVAT for images 1.1"')
    images = list(tree.iter("image"))
    if split is not None:
        subsets = sorted({image.get("subset") or "" for image in images})
        images = [image for image in images if (image.get("subset") or "").lower() == split.lower()]
        if not images:
            raise ValueError(
                f"{path}: no image is of subset {split!r}; there is {', '.join(map(repr, subsets))}"
            )
    names = _keypoint_names(tree, images)
    return Found([_image(path, image, names) for image in images], keypoints=names)


def _keypoint_names(tree, images) -> list[str]:
    """Of the skeletons' points in the order of the labels, then others as they come."""
    listed = [label.findtext("name") for label in tree.iter("label") if label.findtext("parent")]
    used = [name for image in images for name in _names_in(image)]
    return list(dict.fromkeys(name for name in [*(n for n in listed if n in used), *used]))


def _names_in(image) -> list[str]:
    names = [point.get("label") for skeleton in image.iter("skeleton") for point in skeleton.iter("points")]
    for points in image.findall("points"):
        names += [name for name, _ in _named_points(points)]
    return names


def _named_points(points) -> list[tuple[str, str]]:
    """Names and places "x,y" of a <points> that stands alone."""
    label, places = points.get("label"), [p for p in (points.get("points") or "").split(";") if p]
    if len(places) == 1:
        return [(label, places[0])]
    return [(f"{label}_{number}", place) for number, place in enumerate(places, 1)]


def _image(path: Path, image, names: list[str]) -> FoundImage:
    name = image.get("name") or ""
    file = _file_of(path, image, name)
    height, width = image_size(str(file))
    where = f"{path}, image {name}"
    said = (image.get("height"), image.get("width"))
    if None not in said and said != (str(height), str(width)):
        raise ValueError(
            f"{where}: height and width are {said[0]} and {said[1]}, of {file} {height} and {width}"
        )
    objects: dict[tuple, FoundObject] = {}
    for number, shape in enumerate(image):
        if shape.tag in ("points", "tag"):
            continue
        if shape.tag not in _SHAPES:
            raise ValueError(
                f"{where}: a {shape.tag} of {shape.get('label')!r}: only {', '.join(_SHAPES)}, points are read"
            )
        group = _group(shape)
        label = (shape.get("label") or "").strip()
        key = (label, group) if group is not None else (number,)
        one = objects.setdefault(key, FoundObject(label, extra={"group_id": group}))
        try:
            _add_shape(one, shape, height, width, names)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: a {shape.tag} of {label!r} cannot be read: {error}") from error
    found = list(objects.values())
    for one in found:
        if one.bbox is None and one.segmentation is None:
            one.bbox = _span(one.keypoints or [], where, one.category)
    for points in image.findall("points"):
        for name_of_point, place in _named_points(points):
            one = object_of_point(name_of_point, _numbers(place), _group(points), found, where)
            _put(one, names, name_of_point, place, points)
    for one in found:
        one.extra = {}
    return FoundImage(str(file), height, width, found, where)


def _file_of(path: Path, image, name: str) -> Path:
    folder = path.parent
    subset = image.get("subset") or ""
    places = [
        folder / "images" / subset / name,
        folder / "images" / name,
        folder / subset / name,
        folder / name,
    ]
    for place in places:
        if name and place.is_file():
            return place
    raise FileNotFoundError(f"{path}: there is no image {name!r} in {folder} or {folder / 'images'}")


def _group(shape) -> int | None:
    group = shape.get("group_id")
    return int(group) if group and group != "0" else None


def _numbers(text: str | None) -> list[float]:
    return [float(v) for v in (text or "").replace(";", ",").split(",") if v.strip()]


def _add_shape(one: FoundObject, shape, height: int, width: int, names: list[str]):
    kind = shape.tag
    turn = float(shape.get("rotation") or 0)
    if kind == "skeleton":
        for point in shape.iter("points"):
            _put(one, names, point.get("label"), point.get("points"), point)
        return
    if kind == "box":
        x0, y0, x1, y1 = (float(shape.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        if not turn:
            if one.segmentation is None:
                one.bbox = [x0, y0, x1 - x0, y1 - y0]
            return
        polygon = rotated([x0, y0, x1, y0, x1, y1, x0, y1], (x0 + x1) / 2, (y0 + y1) / 2, turn)
    elif kind == "ellipse":
        cx, cy, rx, ry = (float(shape.get(key)) for key in ("cx", "cy", "rx", "ry"))
        polygon = ellipse(cx, cy, rx, ry, turn)
    elif kind == "polygon":
        polygon = _numbers(shape.get("points"))
    else:
        one.segmentation, one.bbox = _mask(shape, height, width), None
        return
    if isinstance(one.segmentation, dict):
        raise ValueError("its group has a mask already")
    one.segmentation = [*(one.segmentation or []), polygon]
    one.bbox = None


def _mask(shape, height: int, width: int) -> dict:
    """Runs of pixels row by row, of background first, within a rectangle."""
    x, y, w, h = (int(float(shape.get(key))) for key in ("left", "top", "width", "height"))
    runs = [int(v) for v in _numbers(shape.get("rle"))]
    if sum(runs) != w * h:
        raise ValueError(f"its rle has {sum(runs)} pixels, width x height is {w * h}")
    if x < 0 or y < 0 or x + w > width or y + h > height:
        raise ValueError(f"its rectangle, {x}, {y}, {w}, {h}, is not within the image")
    part = np.repeat(np.arange(len(runs)) % 2, runs).astype(np.uint8).reshape(h, w)
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[y : y + h, x : x + w] = part
    return mask_util.encode(mask)


def _put(one: FoundObject, names: list[str], name: str, place: str | None, shape):
    if one.keypoints is None:
        one.keypoints = [0] * (3 * len(names))
    if shape.get("outside") == "1":
        return
    x, y = _numbers(place)
    start = 3 * names.index(name)
    # COCO's are indices of pixels, half a pixel less.
    one.keypoints[start : start + 3] = [x - 0.5, y - 0.5, 1 if shape.get("occluded") == "1" else 2]


def _span(keypoints: list[float], where: str, label: str) -> list[float]:
    points = [(x + 0.5, y + 0.5) for x, y, v in zip(*(keypoints[k::3] for k in range(3)), strict=True) if v]
    if not points:
        raise ValueError(
            f"{where}: a skeleton of {label!r} has no point within the image, and no box in its group"
        )
    box = []
    for values in zip(*points, strict=True):
        side = max(max(values) - min(values), _SMALLEST_SIDE)
        box.append(((max(values) + min(values) - side) / 2, side))
    return [box[0][0], box[1][0], box[0][1], box[1][1]]
