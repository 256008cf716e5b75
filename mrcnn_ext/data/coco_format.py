"""Registers one's own data in COCO's format."""

import json
import logging
import re

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

__all__ = ["register_coco_format"]

_SIDES = ((re.compile("left"), "right"), (re.compile(r"(?<![a-z0-9])l(?![a-z0-9])"), "r"))


def register_coco_format(name: str, json_file: str, image_root: str) -> None:
    """Registers a dataset in COCO's format, with the keypoints its categories name.

    detectron2's register_coco_instances leaves the keypoints' names and which of them change sides in a mirrored
    image to the user; here they come from the annotation file: names that differ in left and right, or in l and r as
    a word of their own, are a pair, whatever their case. A warning says where there is none.

    Args:
        name: what configs call it. Registering the same data again does nothing.
        json_file: annotations.
        image_root: folder that the file names of the images start from.

    Raises:
        FileNotFoundError: there is no such annotation file.
        ValueError: it is not a COCO annotation file, its categories have different keypoints, or the name is taken
            by other data.
    """
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("json_file") != json_file:
            raise ValueError(f"dataset {name!r} is already registered for other data: choose another name")
        return
    try:
        with open(json_file) as file:
            categories = json.load(file)["categories"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"dataset {name!r}: there is no annotation file {json_file}") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"dataset {name!r}: {json_file} is not a COCO annotation file: {error!r}") from error
    keypoints = {
        tuple(category["keypoints"]): category for category in categories if category.get("keypoints")
    }
    if len(keypoints) > 1:
        raise ValueError(f"dataset {name!r}: the categories of {json_file} must share one list of keypoints")
    metadata = {}
    for names, category in keypoints.items():
        # COCO counts keypoints from 1. White: there is no colour in the file.
        lines = [(names[a - 1], names[b - 1], (255, 255, 255)) for a, b in category.get("skeleton", ())]
        metadata = {
            "keypoint_names": list(names),
            "keypoint_flip_map": _mirrored(names),
            "keypoint_connection_rules": lines,
        }
        if len(names) > 1 and not metadata["keypoint_flip_map"]:
            logging.getLogger(__name__).warning(
                "dataset %s: no two of its keypoints (%s, ...) are left and right, so that none change places in a "
                "mirrored image. If some should: MetadataCatalog.get(NAME).set(keypoint_flip_map=[(left, right), ...])",
                name,
                ", ".join(names[:3]),
            )
    register_coco_instances(name, metadata, json_file, image_root)


def _mirrored(names) -> list[tuple[str, str]]:
    by_lower = {name.lower(): name for name in names}
    pairs = []
    for name in names:
        for left, right in _SIDES:
            other = left.sub(right, name.lower(), count=1)
            if other != name.lower() and other in by_lower:
                pairs.append((name, by_lower[other]))
                break
    return pairs
