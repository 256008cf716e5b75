"""One annotation as people write it to one as everything reads it: training, checks, evaluators, pictures.

This is the only place that decides what of an annotation is right, what is mended and what is refused. It knows
COCO's conventions: boxes are [x, y, width, height] in pixels, keypoints are pixel indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from .problems import Unusable, shown

__all__ = ["SMALLEST_SIDE", "box_of_segmentation", "clean_annotation", "plain_number", "rle_pixels"]

SMALLEST_SIDE = 1e-5  # pixels; boxes with a shorter side are empty to detectron2's loader

Note = Callable[[str, str], None]


def clean_annotation(
    raw: dict, height: int, width: int, note: Note, num_keypoints: int | None = None
) -> dict:
    """A copy of an annotation with every part as COCO's tools and detectron2 expect it.

    Args:
        raw: an annotation of COCO's format; it is left as it is. "segmentation" may also be an (H, W) array, and
            every list an array.
        height, width: of its image, in pixels.
        note: is called with a kind and a description for everything that was mended.
        num_keypoints: of the dataset; an object without keypoints gets so many that are not visible. None where
            the dataset has none.

    Returns:
        dict: the entries of ``raw`` with "iscrowd" (0 or 1), "bbox" (4 finite floats, not negative), "area"
        (> 0, or 0 for an empty box), "segmentation" (polygons of three points or more, or compressed RLE of the
        image's size; absent if there is none), "keypoints" and "num_keypoints" (absent where the dataset has none).
        "undrawable" is True if there was a segmentation of which nothing can be drawn.

    Raises:
        Unusable: a part is wrong and cannot be mended.
    """
    if not isinstance(raw, dict):
        raise Unusable(f"an annotation must be an object, {{...}}, got {shown(raw)}")
    clean = dict(raw)
    clean["iscrowd"] = _iscrowd(raw, note)
    segmentation = _segmentation(raw.get("segmentation"), height, width, note)
    clean.pop("undrawable", None)
    if segmentation is None:
        clean.pop("segmentation", None)
    elif not segmentation:
        clean.pop("segmentation")
        clean["undrawable"] = True
    else:
        clean["segmentation"] = segmentation
    clean["bbox"] = _box(raw.get("bbox"), segmentation, height, width, note)
    clean["area"] = _area(raw.get("area"), clean, height, width, note)
    keypoints = _keypoints(raw.get("keypoints"), num_keypoints, note)
    if keypoints is None:
        clean.pop("keypoints", None)
        clean.pop("num_keypoints", None)
    else:
        clean["keypoints"] = keypoints
        clean["num_keypoints"] = sum(v > 0 for v in keypoints[2::3])
    return clean


def plain_number(value) -> float:
    """A number of Python's of any kind of number, or of text that is one.

    Raises:
        Unusable: it is neither, or not finite.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise Unusable(f"{value!r} is no number") from None
    if not isinstance(value, (int, float)):
        raise Unusable(f"{shown(value)} is no number")
    if not math.isfinite(value):
        raise Unusable(f"{value} is not finite")
    return value


def rle_pixels(counts: str | bytes) -> int:
    """How many pixels, set or not, compressed RLE is for: the sum of its runs.

    pycocotools does not compare it with the size of the mask, and reads beyond the counts where it is less.

    Raises:
        Unusable: it is no compressed RLE.
    """
    try:
        written = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise Unusable("its RLE has counts that pycocotools has not written") from None
    codes = np.frombuffer(written, np.uint8).astype(np.int64) - 48
    if len(codes) == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise Unusable("its RLE has counts that pycocotools has not written, or that are cut off")
    # A number is its pieces of 5 bits, the lowest first; 32 says that more follow, 16 of the last is the sign.
    starts = np.flatnonzero(np.concatenate([[True], (codes[:-1] & 32) == 0]))
    places = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    if places.max() > 7:
        raise Unusable("its RLE has a run longer than any image")
    values = np.add.reduceat((codes & 31) << (5 * places), starts)
    last = np.append(starts[1:], len(codes)) - 1
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (places[last] + 1)), 0)
    # From the fourth run on it is the difference to the one before the last.
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0:
        raise Unusable("its RLE has a run of negative length")
    return int(runs.sum())


def box_of_segmentation(segmentation, height: int, width: int) -> list[float]:
    """[x, y, width, height] around polygons or RLE."""
    if isinstance(segmentation, dict):
        return [float(v) for v in mask_util.toBbox(segmentation)]
    xs = [x for polygon in segmentation for x in polygon[0::2]]
    ys = [y for polygon in segmentation for y in polygon[1::2]]
    return [float(v) for v in (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))]


def _numbers(values, what: str, note: Note) -> list:
    """The numbers of a list or array; the list itself where there is nothing to do."""
    if isinstance(values, np.ndarray):
        values = values.reshape(-1).tolist()
    if not isinstance(values, (list, tuple)):
        raise Unusable(f"{what} must be a list of numbers, got {shown(values)}")
    try:
        if math.isfinite(sum(values)):
            return values if isinstance(values, list) else list(values)
    except TypeError:
        pass
    try:
        numbers = [plain_number(v) for v in values]
    except Unusable as problem:
        raise Unusable(f"{what}: {problem}") from None
    if any(isinstance(v, str) for v in values):
        note("text", f"{what} has numbers written as text, which are read as numbers")
    return numbers


def _iscrowd(raw: dict, note: Note) -> int:
    value = raw.get("iscrowd")
    if value is None or value is False:
        value = 0
    if type(value) is not int:
        try:
            value = plain_number(value)
        except Unusable as problem:
            raise Unusable(f"iscrowd must be 0 or 1: {problem}") from None
    if value not in (0, 1):
        raise Unusable(f"iscrowd must be 0 or 1, got {shown(raw['iscrowd'])}")
    if not value and raw.get("ignore") not in (None, 0, False, "0"):
        note("ignore", "its 'ignore' is set: it counts as a crowd, neither learnt from nor evaluated")
        return 1
    return int(value)


def _segmentation(raw, height: int, width: int, note: Note):
    """Polygons or RLE; None if there is no segmentation, an empty list if nothing of it can be drawn."""
    if raw is None or (isinstance(raw, (list, tuple, dict, str)) and not raw):
        return None
    if isinstance(raw, dict):
        return _rle(raw, height, width)
    if isinstance(raw, np.ndarray) and raw.ndim == 2 and raw.dtype.kind in "buif":
        if raw.shape != (height, width):
            raise Unusable(
                f"its mask is of shape {raw.shape}, the image is {(height, width)} (height, width)"
            )
        return mask_util.encode(np.asfortranarray(raw != 0, dtype=np.uint8))
    if isinstance(raw, np.ndarray):
        raise Unusable(f"its mask must be an array (height, width), got shape {raw.shape}")
    if not isinstance(raw, (list, tuple)):
        raise Unusable(f"segmentation must be polygons, RLE or an array, got {type(raw).__name__}")
    return _polygons(raw, note)


def _polygons(raw, note: Note) -> list[list[float]]:
    polygons = []
    for polygon in raw:
        if not isinstance(polygon, (list, tuple, np.ndarray)):
            raise Unusable(
                "its segmentation must be a list of polygons, [[x, y, ...], ...], or RLE; "
                f"it is a list of {type(polygon).__name__}"
            )
        if len(polygon) and isinstance(polygon[0], (list, tuple, np.ndarray)):
            polygons += _nested(polygon, note)
            continue
        polygon = _numbers(polygon, "a polygon", note)
        if len(polygon) < 6 or len(polygon) % 2:
            note(
                "polygon",
                f"a polygon of {len(polygon)} numbers cannot be drawn and is left out: it must be x, y pairs of "
                "three points or more",
            )
            continue
        polygons.append(polygon)
    return polygons


def _nested(polygon, note: Note) -> list[list[float]]:
    """A polygon of [x, y] pairs, or polygons within one more list."""
    if all(isinstance(point, (list, tuple, np.ndarray)) and len(point) == 2 for point in polygon):
        note("nested", "a polygon is a list of [x, y] points, which are read as x, y, x, y, ...")
        return _polygons([[value for point in polygon for value in point]], note)
    note("nested", "its polygons are in one list more than they should be, which is taken away")
    return _polygons(polygon, note)


def _rle(raw: dict, height: int, width: int) -> dict:
    counts = raw.get("counts")
    size: Any = raw.get("size")  # not iterable: TypeError, as looked for
    try:
        found = tuple(int(plain_number(v)) for v in size)
    except (TypeError, Unusable):
        raise Unusable(f"its RLE must have a size [height, width], got {shown(size)}") from None
    if found != (height, width):
        raise Unusable(f"its RLE is of size {found}, the image is {(height, width)} (height, width)")
    if isinstance(counts, (list, tuple, np.ndarray)):
        runs = [plain_number(v) for v in counts]
        if any(run < 0 or run != int(run) for run in runs):
            raise Unusable("its RLE must have counts that are whole numbers of pixels, 0 or more")
        pixels = int(sum(runs))
    elif isinstance(counts, (str, bytes)):
        runs, pixels = None, rle_pixels(counts)
    else:
        raise Unusable(
            f"its RLE must have counts, a list or text as pycocotools writes it, got {shown(counts)}"
        )
    if pixels != height * width:
        raise Unusable(
            f"the counts of its RLE add up to {pixels} pixels, the image has {height} x {width} = {height * width}"
        )
    if runs is not None:
        return mask_util.frPyObjects(
            {"size": [height, width], "counts": [int(v) for v in runs]}, height, width
        )
    return raw if list(size) == [height, width] and type(size) is list else {**raw, "size": [height, width]}


def _box(raw, segmentation, height: int, width: int, note: Note) -> list[float]:
    if raw is None or (isinstance(raw, (list, tuple, np.ndarray)) and len(raw) == 0):
        if not segmentation:
            raise Unusable("it has no bbox, and no segmentation to take it from")
        note("no-bbox", "it has no bbox: the one of its segmentation is taken")
        return box_of_segmentation(segmentation, height, width)
    box = [float(v) for v in _numbers(raw, "its bbox", note)]
    if len(box) != 4:
        raise Unusable(f"its bbox must have 4 numbers, x, y, width, height, got {box}")
    if box[2] < 0 or box[3] < 0:
        raise Unusable(f"its bbox has a negative width or height: {box} (x, y, width, height)")
    if min(box[2:]) <= SMALLEST_SIDE and segmentation:
        around = box_of_segmentation(segmentation, height, width)
        if min(around[2:]) > SMALLEST_SIDE:
            note("empty-bbox-mended", f"its bbox {box} is empty: the one of its segmentation is taken")
            return around
    return box


def _area(raw, clean: dict, height: int, width: int, note: Note) -> float:
    # A bool is an int, and no area.
    if type(raw) in (int, float) and 0 < raw <= height * width:
        return raw
    try:
        area = plain_number(raw)
        if 0 < area <= height * width:
            return area
    except Unusable:
        area = None
    segmentation = clean.get("segmentation")
    if segmentation:
        rles = mask_util.frPyObjects(segmentation, height, width) if isinstance(segmentation, list) else None
        mended = float(mask_util.area(segmentation if rles is None else mask_util.merge(rles)))
    else:
        mended = clean["bbox"][2] * clean["bbox"][3]
    if not mended and segmentation:  # thinner than a pixel
        mended = clean["bbox"][2] * clean["bbox"][3]
    if mended:
        what = "has no area" if raw is None else f"has an area of {shown(raw)}"
        note("area", f"it {what}: that of its {'mask' if segmentation else 'box'} is taken")
    return mended


def _keypoints(raw, num_keypoints: int | None, note: Note) -> list[float] | None:
    if raw is None or (isinstance(raw, (list, tuple, np.ndarray, str)) and len(raw) == 0):
        return None if num_keypoints is None else [0] * (3 * num_keypoints)
    if isinstance(raw, (list, tuple)) and any(isinstance(point, (list, tuple, np.ndarray)) for point in raw):
        raw = [value for point in raw for value in point]
    if isinstance(raw, np.ndarray):
        raw = raw.reshape(-1).tolist()
    if isinstance(raw, (list, tuple)) and len(raw) % 3 == 0:
        raw = _without_unknown_places(raw)
    values = _numbers(raw, "its keypoints", note)
    if len(values) % 3:
        raise Unusable(f"its keypoints must be x, y, visibility for each, got {len(values)} numbers")
    if num_keypoints is not None and len(values) != 3 * num_keypoints:
        raise Unusable(
            f"it has {len(values) // 3} keypoints ({len(values)} numbers), but the dataset has {num_keypoints}: "
            f"{3 * num_keypoints} numbers x, y, visibility are expected"
        )
    return values


def _without_unknown_places(values):
    """Null or NaN as the place of a keypoint that is not there is 0."""
    if not any(v is None or v != v for v in values):
        return values
    values = list(values)
    for k in range(0, len(values), 3):
        if values[k + 2] in (0, None):
            values[k : k + 3] = [0, 0, 0]
    return values
