"""Finds what is wrong with a dataset before training starts."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image, UnidentifiedImageError

_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
_TAIL = 4096  # bytes at the end of a file among which its end marker must be
_MOST_STRAYING = 0.2  # share of boxes
_ORIENTATION = 0x0112  # EXIF tag; 5 and up exchange height and width


def check_dataset(
    dataset: str | Sequence[dict],
    *,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    needs_masks: bool = False,
    needs_keypoints: bool = False,
    needs_annotations: bool = True,
    mask_format: str = "polygon",
    check_images: bool = True,
    workers: int = 8,
) -> list[dict]:
    """
    Checks a dataset of detectron2's standard format: that its files are there and whole, and that a model can
    learn from its annotations.

    Every image's header is read and its file looked at for the format's end marker; only a file without one
    is decoded. That is quick, and finds truncated files, but not a damaged middle.

    Args:
        dataset: a registered name, or the dataset's dicts.
        num_classes: classes of the model; category ids must be below it.
        num_keypoints: keypoints of the model's keypoint head; checked where an annotation has keypoints.
        needs_masks: every annotation but crowds must have a segmentation.
        needs_keypoints: every annotation but crowds must have keypoints.
        needs_annotations: at least one annotation that is no crowd must exist.
        mask_format: "polygon" or "bitmask", as INPUT.MASK_FORMAT; RLE needs "bitmask", except for crowds.
        check_images: whether to look at the image files.
        workers: threads that look at image files.

    Returns:
        list[dict]: the dataset's dicts.

    Raises:
        FileNotFoundError: a file of the dataset is missing.
        ValueError: anything else; the message names the dataset, the image, the annotation and what would be
            right.
    """
    name = dataset if isinstance(dataset, str) else "(given as dicts)"
    dicts = _load(dataset) if isinstance(dataset, str) else list(dataset)
    if not dicts:
        raise ValueError(f"dataset {name!r} is empty: it has no images")
    usable, boxes, straying = 0, 0, []
    for record in dicts:
        for key in ("file_name", "height", "width"):
            if key not in record:
                raise ValueError(f"dataset {name!r}, image {_image(record)}: its record has no {key!r}")
        for number, annotation in enumerate(record.get("annotations", ())):
            crowd = bool(annotation.get("iscrowd", 0))
            usable += not crowd
            try:
                _check_category(annotation, num_classes)
                odd = _check_box(annotation, record)
                _check_segmentation(annotation, record, needs_masks and not crowd, mask_format, crowd)
                _check_keypoints(annotation, num_keypoints, needs_keypoints and not crowd)
            except (_Problem, TypeError, ValueError, AssertionError) as problem:
                raise ValueError(f"dataset {name!r}, {_label(record, number)}: {problem}") from None
            boxes += 1
            if odd is not None:
                straying.append(f"{_label(record, number)}: {odd}")
    _judge_straying(name, straying, boxes)
    if needs_annotations and not usable:
        raise ValueError(
            f"dataset {name!r} has {len(dicts)} images and no annotation to learn from (crowds do not count)"
        )
    if check_images:
        _check_images(name, dicts, workers)
    return dicts


def _judge_straying(name: str, straying: list[str], boxes: int) -> None:
    """A few boxes that reach far beyond their images are those of objects cut off; many are of another format."""
    if not straying:
        return
    if len(straying) > _MOST_STRAYING * boxes:
        more = f" (and {len(straying) - 1} of {boxes} more)" if len(straying) > 1 else ""
        raise ValueError(f"dataset {name!r}, {straying[0]}{more}")
    logging.getLogger(__name__).warning(
        "dataset %r: %d of %d boxes reach far beyond their images, where detectron2 cuts them off; the first: %s",
        name,
        len(straying),
        boxes,
        straying[0],
    )


class _Problem(Exception):
    """What is wrong with an annotation."""


def _image(record: dict) -> str:
    return f"{record.get('image_id', '?')} ({record.get('file_name', 'no file name')})"


def _label(record: dict, number: int) -> str:
    annotation = record["annotations"][number]
    which = f"id {annotation['id']}" if "id" in annotation else f"number {number} (from 0)"
    return f"image {_image(record)}, annotation {which}"


def _load(name: str) -> list[dict]:
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(name, DatasetCatalog.list(), 3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "register it before training"
        raise ValueError(f"dataset {name!r} is not registered: {hint}")
    try:
        return DatasetCatalog.get(name)
    except FileNotFoundError as error:
        if repr(name) in str(error):
            raise
        raise FileNotFoundError(
            f"dataset {name!r} is not on disk: {error.filename or error} is missing. datasets/README.md says "
            "how to get it; set DETECTRON2_DATASETS if it lies elsewhere"
        ) from error
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        metadata = MetadataCatalog.get(name)
        where = getattr(metadata, "json_file", getattr(metadata, "gt_dir", "its annotations"))
        raise ValueError(
            f"dataset {name!r} cannot be read from {where}: {type(error).__name__}: {error}"
        ) from error


def _check_category(annotation: dict, num_classes: int | None) -> None:
    category = annotation.get("category_id")
    if not isinstance(category, (int, np.integer)):
        raise _Problem(f"category_id must be an integer, got {category!r}")
    if num_classes is not None and not 0 <= category < num_classes:
        raise _Problem(
            f"category_id {category} is out of range: the model has {num_classes} classes, so it must be 0 "
            f"to {num_classes - 1} (after mapping to contiguous ids)"
        )


def _check_box(annotation: dict, record: dict) -> str | None:
    """Returns what is odd about the box: that it reaches far beyond the image."""
    if "bbox" not in annotation:
        raise _Problem("it has no bbox")
    if "bbox_mode" not in annotation:
        raise _Problem("it has no bbox_mode (a detectron2 BoxMode)")
    bbox = [float(v) for v in annotation["bbox"]]
    if not all(math.isfinite(v) for v in bbox):
        raise _Problem(f"its bbox {bbox} is not finite")
    if len(bbox) == 5:
        return None  # rotated boxes may leave the image
    if len(bbox) != 4:
        raise _Problem(f"its bbox must have 4 numbers (5 if rotated), got {bbox}")
    if BoxMode(annotation["bbox_mode"]) not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise _Problem(
            f"its bbox_mode must be XYXY_ABS or XYWH_ABS, got {BoxMode(annotation['bbox_mode']).name}"
        )
    x0, y0, x1, y1 = BoxMode.convert(bbox, annotation["bbox_mode"], BoxMode.XYXY_ABS)
    if x1 < x0 or y1 < y0:
        raise _Problem(
            f"its bbox has a negative width or height: {bbox} ({BoxMode(annotation['bbox_mode']).name})"
        )
    outside = x1 < 0 or y1 < 0 or x0 > record["width"] or y0 > record["height"]
    # Boxes drawn by hand stray over the border; those of whole bodies, cut off by it, do so by more.
    slack_x, slack_y = 2 + 0.05 * record["width"], 2 + 0.05 * record["height"]
    if x0 < -slack_x or y0 < -slack_y or x1 > record["width"] + slack_x or y1 > record["height"] + slack_y:
        problem = (
            f"its bbox, x0 y0 x1 y1 = {[round(v, 1) for v in (x0, y0, x1, y1)]}, lies outside the image of "
            f"width {record['width']} and height {record['height']}: is bbox_mode right?"
        )
        if outside:
            raise _Problem(problem)
        return problem
    return None


def _check_segmentation(annotation: dict, record: dict, needed: bool, mask_format: str, crowd: bool) -> None:
    segmentation = annotation.get("segmentation")
    if segmentation is None or (isinstance(segmentation, list) and not segmentation):
        if needed:
            raise _Problem("it has no segmentation, which the mask head needs")
        return
    size = (record["height"], record["width"])
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, (list, tuple, np.ndarray)):
                raise _Problem("its segmentation must be a list of polygons, [[x, y, ...], ...], or RLE")
            if len(polygon) < 6 or len(polygon) % 2:
                raise _Problem(
                    f"a polygon of {len(polygon)} numbers: it must be x, y pairs of three points or more"
                )
            if not np.isfinite(np.asarray(polygon, dtype=np.float64)).all():
                raise _Problem("a polygon with a coordinate that is not finite")
        return
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), (str, bytes)):
            raise _Problem("its RLE must have compressed counts (pycocotools.mask.frPyObjects makes them)")
        found = tuple(segmentation.get("size", ()))
        if found != size:
            raise _Problem(f"its RLE is of size {found}, the image is {size} (height, width)")
    elif isinstance(segmentation, np.ndarray):
        if segmentation.shape != size:
            raise _Problem(f"its mask is of shape {segmentation.shape}, the image is {size} (height, width)")
    else:
        raise _Problem(f"segmentation must be polygons, RLE or an array, got {type(segmentation).__name__}")
    if needed and not crowd and mask_format == "polygon":
        raise _Problem("its segmentation is no polygon: set INPUT.MASK_FORMAT to 'bitmask'")


def _check_keypoints(annotation: dict, num_keypoints: int | None, needed: bool) -> None:
    keypoints = annotation.get("keypoints")
    if keypoints is None:
        if needed:
            raise _Problem(
                "it has no keypoints, which the keypoint head needs (three zeros for each that is unknown)"
            )
        return
    values = np.asarray(keypoints, dtype=np.float64).reshape(-1)
    if num_keypoints is not None and len(values) != 3 * num_keypoints:
        raise _Problem(
            f"it has {len(values) / 3:g} keypoints ({len(values)} numbers), but the model's keypoint head "
            f"has {num_keypoints}: {3 * num_keypoints} numbers x, y, visibility are expected"
        )
    if not np.isfinite(values).all():
        raise _Problem("a keypoint with a coordinate that is not finite")


def _check_images(name: str, dicts: list[dict], workers: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(_check_image, dicts, chunksize=32))
    problems = [error for error in found if error is not None]
    if not problems:
        return
    kind, text = problems[0]
    more = f" (and {len(problems) - 1} more images have a problem)" if len(problems) > 1 else ""
    raise kind(f"dataset {name!r}, {text}{more}")


def _check_image(record: dict) -> tuple[type[Exception], str] | None:
    label = f"image {_image(record)}"
    path = record["file_name"]
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            if turned:  # as detectron2 reads it
                height, width = width, height
            if (height, width) != (record["height"], record["width"]):
                return ValueError, (
                    f"{label}: the file has height {height} and width {width}"
                    f"{', turned as its EXIF data say' if turned else ''}, the annotations say "
                    f"{record['height']} and {record['width']}"
                )
            if image.mode.startswith("I"):
                return ValueError, (
                    f"{label}: it has more than 8 bits a pixel, which detectron2 cuts off at 255: convert it"
                )
            if not _has_end(path, image.format):
                image.load()
    except FileNotFoundError:
        return (
            FileNotFoundError,
            f"{label}: the file does not exist. datasets/README.md shows the expected tree",
        )
    except UnidentifiedImageError:
        return ValueError, f"{label}: the file is not an image, or its beginning is damaged: fetch it again"
    except (OSError, SyntaxError) as error:
        return ValueError, f"{label}: the file is truncated or damaged ({error}): fetch it again"
    return None


def _has_end(path: str, image_format: str | None) -> bool:
    """Whether the file's last bytes hold its format's end marker."""
    marker = _ENDS.get(image_format or "")
    if marker is None:
        return False
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(-min(file.tell(), _TAIL), 2)
        return marker in file.read()
