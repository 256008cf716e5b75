"""Predictions as files to keep: COCO's format, pictures, an archive of both."""

import io
import json
import math
import zipfile
from collections.abc import Iterable
from pathlib import PurePath

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances

from ..evaluation import instances_to_coco_json
from .inputs import Picture

__all__ = ["archive", "coco_file", "png", "stem"]


def coco_file(found: Iterable[tuple[Picture, Instances]], kinds: dict[int, dict], skeleton: dict) -> str:
    """Predictions as one file of COCO's annotation format, each annotation with its ``score``.

    pycocotools, FiftyOne and labelling tools read it as a dataset; its "annotations" are COCO results too.

    Args:
        found: pictures with their instances on the CPU.
        kinds: COCO categories of the model's classes; without names, ids are the model's own.
        skeleton: "keypoints" and "skeleton" (from 1) of the categories, if the model finds keypoints.
    """
    images, annotations, used = [], [], {}
    for number, (picture, instances) in enumerate(found, 1):
        height, width = instances.image_size
        image = {"id": number, "file_name": picture.name, "height": height, "width": width}
        if picture.frame is not None:
            image["frame"] = picture.frame
        images.append(image)
        for record in instances_to_coco_json(instances, number):
            label = record["category_id"]
            kind = kinds.get(label, {"id": label, "name": f"class {label}"})
            used[kind["id"]] = {**kind, **skeleton}
            record |= {"id": len(annotations) + 1, "category_id": kind["id"], "iscrowd": 0}
            record["area"] = _area(record)
            if "keypoints" in record:
                record["keypoints"] = _finite(record["keypoints"])
                record["num_keypoints"] = len(record["keypoints"]) // 3
            annotations.append(record)
    categories = {kind["id"]: {**kind, **skeleton} for kind in kinds.values()} | used
    content = {"images": images, "annotations": annotations, "categories": list(categories.values())}
    return json.dumps(content, allow_nan=False)


def _finite(keypoints: list[float]) -> list[float]:
    """Keypoints whose place or score is no number, which JSON cannot hold, at 0 with the score 0."""
    triples = [keypoints[k : k + 3] for k in range(0, len(keypoints), 3)]
    return [value for point in triples for value in (point if math.isfinite(sum(point)) else [0.0] * 3)]


def _area(record: dict) -> float:
    if "segmentation" in record:
        return float(mask_util.area(record["segmentation"]))
    return record["bbox"][2] * record["bbox"][3]


def png(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB as a PNG file."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))
    return data.tobytes()


def stem(picture: Picture) -> str:
    """A file name for what is made of a picture, without its ending: of letters that every system takes."""
    name = PurePath(picture.name.replace("\\", "/")).stem
    name = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in name).strip(". ")
    name = name[:80] or "picture"
    return name if picture.frame is None else f"{name}_{picture.frame:06d}"


def archive(drawn: Iterable[tuple[Picture, bytes]], coco: str) -> bytes:
    """A ZIP file of pictures, each a PNG of its own name, and ``predictions.json``."""
    data = io.BytesIO()
    names: set[str] = set()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as file:  # PNGs do not shrink
        for picture, content in drawn:
            name = stem(picture)
            number = 1
            while name.lower() in names:
                number += 1
                name = f"{stem(picture)} {number}"
            names.add(name.lower())
            file.writestr(f"{name}.png", content)
        file.writestr("predictions.json", coco, compress_type=zipfile.ZIP_DEFLATED)
    return data.getvalue()
