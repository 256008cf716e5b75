"""Registers one's own data in COCO's format."""

from __future__ import annotations

import logging
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from .coco_file import CocoFile
from .description import read_description
from .keypoint_names import mirrored_pairs, one_sided, skeleton_lines
from .loading import CocoLoader
from .places import absolute
from .problems import Problems

__all__ = ["register_coco_format"]

_WHITE = (255, 255, 255)


def register_coco_format(
    name: str, json_file: str, image_root: str, description: dict | str | None = None
) -> None:
    """Registers a dataset in COCO's format, with the classes and keypoints that its file names.

    detectron2's register_coco_instances leaves the keypoints' names and which of them change sides in a mirrored
    image to the user; here they come from the annotation file (`mirrored_pairs`), or from ``description`` where it has
    them. A warning says where a left has no right.

    Args:
        name: what configs call it. Registering the same data again does nothing.
        json_file: annotations.
        image_root: folder that the file names of the images start from.
        description: what the file lacks or has wrong, or a yaml or JSON file of it; see `read_description`.

    Raises:
        FileNotFoundError: there is no such annotation file or description.
        ValueError: it is not a COCO annotation file, its categories have different keypoints, the description does not
            fit it, or the name is taken by other data.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if name in DatasetCatalog.list():
        known = MetadataCatalog.get(name).get("json_file")
        if known is None or os.path.abspath(known) != os.path.abspath(json_file):
            raise ValueError(f"dataset {name!r} is already registered for other data: choose another name")
        return
    try:
        file = CocoFile.shared(json_file, Problems(name, json_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"dataset {name!r}: there is no annotation file {json_file}") from error
    except ValueError as error:
        raise error if repr(name) in str(error) else ValueError(f"dataset {name!r}: {error}") from error
    described = read_description(
        description,
        classes=[category["name"] for category in file.categories],
        keypoints=file.keypoint_names,
        where=f"dataset {name!r}",
        json_file=json_file,
    )
    metadata = {
        "thing_classes": described.get("names") or [category["name"] for category in file.categories],
        "thing_dataset_id_to_contiguous_id": {c["id"]: k for k, c in enumerate(file.categories)},
    }
    if "colors" in described:
        metadata["thing_colors"] = described["colors"]
    keypoints = described.get("keypoints") or file.keypoint_names
    if keypoints:
        metadata |= _keypoint_metadata(name, keypoints, file, described)
    _, *entry = absolute([name, json_file, image_root, *([description] if description else [])])
    DatasetCatalog.register(name, CocoLoader(name, json_file, image_root))
    MetadataCatalog.get(name).set(
        coco_format=entry,  # for checkpoints, which say what they were trained on
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        **metadata,
    )


def _keypoint_metadata(name: str, keypoints: list[str], file: CocoFile, described: dict) -> dict:
    skeleton = next(
        (c["skeleton"] for c in file.categories if c.get("keypoints") and c.get("skeleton")), None
    )
    lines = described.get("skeleton")
    if lines is None:
        lines = skeleton_lines(skeleton, keypoints, f"dataset {name!r}")
    pairs = described.get("flip_pairs")
    if pairs is None:
        pairs = mirrored_pairs(keypoints)
        _tell_of_sides(name, keypoints, pairs)
    metadata = {
        "keypoint_names": list(keypoints),
        "keypoint_flip_map": [tuple(pair) for pair in pairs],
        # There is no colour in the file.
        "keypoint_connection_rules": [(a, b, _WHITE) for a, b in lines],
    }
    if "sigmas" in described:
        metadata["keypoint_oks_sigmas"] = described["sigmas"]
    return metadata


def _tell_of_sides(name: str, keypoints: list[str], pairs: list):
    logger = logging.getLogger(__name__)
    advice = (
        'give them in the description, the fourth element of DATASETS.COCO_FORMAT: {"flip_pairs": [[LEFT, RIGHT], '
        '...]}, or {"flip_pairs": []} if none do'
    )
    if len(keypoints) > 1 and not pairs:
        logger.warning(
            "dataset %s: no two of its keypoints (%s, ...) are left and right, so that none change places in a "
            "mirrored image. If some should, %s",
            name,
            ", ".join(keypoints[:3]),
            advice,
        )
        return
    alone = one_sided(keypoints)
    if alone:
        logger.warning(
            "dataset %s: its keypoints %s have no counterpart on the other side, so that they do not change places "
            "in a mirrored image. If they should, %s",
            name,
            ", ".join(map(repr, alone)),
            advice,
        )
