"""Files in COCO's results format, read with a check of every record. Runs without detectron2."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from .coco_metrics import TruthCOCO

__all__ = ["read_results"]

_WANTED = "a list of {'image_id', 'category_id', 'score', 'bbox'}, as COCO's results format has"


def read_results(path: str | os.PathLike, truth: TruthCOCO) -> list[dict]:
    """Predictions for the images of an annotation file.

    ``mrcnn-ext predict`` numbers the images of a folder itself, and writes which is which into ``<name>.images.json``
    beside its results: where there is such a file, images are told by their file names.

    Args:
        path: of the results.
        truth: what they are to be laid beside.

    Returns:
        The records, with the image ids of ``truth``.

    Raises:
        ValueError: the file is not as it must be, or its results are of other images or classes; the message names the
            record.
    """
    with open(path, encoding="utf-8") as file:
        try:
            records = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path} must hold {_WANTED}; it holds a {type(records).__name__}")
    ids = _ids_by_name(Path(path), truth)
    for number, record in enumerate(records):
        where = f"{path}: record {number} (from 0)"
        _check(record, where)
        if ids is not None:
            record["image_id"] = ids.get(record["image_id"], record["image_id"])
        for key, known, what in (
            ("image_id", truth.imgs, "images"),
            ("category_id", truth.cats, "categories"),
        ):
            if record[key] not in known:
                raise ValueError(
                    f"{where} has {key} {record[key]!r}, which is none of the annotation file's {what}: are the "
                    "results of other data?"
                )
        _check_mask(record, truth.imgs[record["image_id"]], where)
    for key in ("segmentation", "keypoints"):
        having = [key in record for record in records]
        if any(having) and not all(having):
            raise ValueError(f"{path}: record {having.index(False)} (from 0) lacks {key}, which others have")
    return records


def _check(record, where):
    needed = ("image_id", "category_id", "score", "bbox")
    missing = [key for key in needed if not isinstance(record, Mapping) or key not in record]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; needed: {_WANTED}")
    for key in ("image_id", "category_id"):
        if not isinstance(record[key], (int, float, str)):
            raise ValueError(f"{where}: {key} must be an id of the annotation file, got {record[key]!r}")
    if not _is_number(record["score"]):
        raise ValueError(f"{where}: score must be a finite number, got {record['score']!r}")
    box = record["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(f"{where}: bbox must be four finite numbers, x, y, width, height; got {box!r}")
    points = record.get("keypoints")
    if points is not None and (
        not isinstance(points, list) or len(points) % 3 or not all(map(_is_number, points))
    ):
        raise ValueError(f"{where}: keypoints must be x, y, score of each in one list of finite numbers")


def _check_mask(record, image, where):
    """A run-length encoding of the image's size, or polygons."""
    mask = record.get("segmentation")
    if "segmentation" not in record or (isinstance(mask, list) and mask and all(map(_is_polygon, mask))):
        return
    size, counts = (mask.get("size"), mask.get("counts")) if isinstance(mask, Mapping) else (None, None)
    if not isinstance(counts, (str, list)) or not isinstance(size, list) or len(size) != 2:
        raise ValueError(
            f"{where}: segmentation must be an encoding {{'size': [height, width], 'counts': ...}} or a list of "
            f"polygons, got {mask!r:.60}"
        )
    wanted = [image.get("height", size[0]), image.get("width", size[1])]
    if size != wanted:
        raise ValueError(f"{where}: its mask is of the size {size} (height, width), its image of {wanted}")


def _is_polygon(points):
    return (
        isinstance(points, list)
        and len(points) >= 6
        and len(points) % 2 == 0
        and all(map(_is_number, points))
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _ids_by_name(path: Path, truth: TruthCOCO) -> dict | None:
    """Image id in the results -> that of the truth, by the file names beside the results; None without such a file.

    Raises:
        ValueError: images of which the truth has none of the name.
    """
    beside = path.with_suffix(".images.json")
    if not beside.is_file():
        return None
    try:
        images = json.loads(beside.read_text(encoding="utf-8"))["images"]
        names = [(image["id"], image["file_name"]) for image in images if "frame" not in image]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{beside} must hold the images of {path.name} as mrcnn-ext predict writes them: {error!r}"
        ) from error
    if len(names) < len(images):  # of a video: there are no names to tell its frames by
        return None
    by_name = {image.get("file_name"): id for id, image in truth.imgs.items()}
    by_base: dict[str, list] = {}
    for name, known in by_name.items():
        by_base.setdefault(Path(str(name)).name, []).append(known)
    found, unknown = {}, []
    for id, name in names:
        same = by_base.get(Path(name).name, [])
        if name in by_name:
            found[id] = by_name[name]
        elif len(same) == 1:
            found[id] = same[0]
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of its {len(images)} images are none of the annotation file's, by the names in "
            f"{beside.name} ({', '.join(unknown[:3])}): are the results of other data?"
        )
    return found
