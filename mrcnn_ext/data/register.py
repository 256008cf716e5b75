"""Registers the datasets that `mrcnn-ext datasets scenes` writes."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import KEYPOINT_CONNECTION_RULES
from detectron2.data.datasets.cityscapes import load_cityscapes_instances

from ..scenes.spec import CATEGORIES, KEYPOINT_FLIP_MAP, KEYPOINT_NAMES
from .loading import CocoLoader

_KEYPOINTS = {
    "keypoint_names": list(KEYPOINT_NAMES),
    "keypoint_flip_map": list(KEYPOINT_FLIP_MAP),
    "keypoint_connection_rules": list(KEYPOINT_CONNECTION_RULES),
}
_CLASSES = {
    "thing_classes": [name for name, _, _ in CATEGORIES],
    "thing_colors": [color for _, _, color in CATEGORIES],
}
_SCENES_COMMAND = "mrcnn-ext datasets scenes"
_PERSON = {"thing_classes": ["person"], "thing_colors": [CATEGORIES[0][2]]}


def register_scenes(root: str, prefix: str = "scenes") -> None:
    """
    Registers the datasets under `root`, whether or not they are there yet; files are read on first use.

    For each split of train and val: `{prefix}_{split}` (COCO format, eight categories, keypoints on person
    and rider), `{prefix}_person_{split}` (COCO format, person only) and `{prefix}_cityscapes_{split}`
    (Cityscapes layout and evaluator).

    Args:
        root: what `make_scenes.py` was told to write.
        prefix: start of the datasets' names.

    Raises:
        ValueError: the names are already registered for another root.
    """
    root = os.path.abspath(root)
    for split in ("train", "val"):
        annotations = os.path.join(root, "annotations")
        _coco(f"{prefix}_{split}", root, os.path.join(annotations, f"instances_{split}.json"), _CLASSES)
        _coco(
            f"{prefix}_person_{split}",
            root,
            os.path.join(annotations, f"person_keypoints_{split}.json"),
            _PERSON,
        )
        _cityscapes(f"{prefix}_cityscapes_{split}", root, split)


def register_clips(root: str, prefix: str = "clips") -> None:
    """
    Registers the clips under `root`, whether or not they are there yet; files are read on first use.

    For each split of train and val: `{prefix}_{split}` (eight categories, keypoints on person and rider) and
    `{prefix}_person_{split}` (persons and riders as "person"). The records of the images have "video_id" and
    "frame_index", the annotations "track_id".

    Args:
        root: what `mrcnn_ext.scenes.write_clips` wrote.
        prefix: start of the datasets' names.

    Raises:
        ValueError: the names are already registered for another root.
    """
    root = os.path.abspath(root)
    for split in ("train", "val"):
        for name, kind, metadata in (
            (prefix, "instances", _CLASSES),
            (f"{prefix}_person", "person_keypoints", _PERSON),
        ):
            json_file = os.path.join(root, "annotations", f"{kind}_{split}.json")
            _coco(f"{name}_{split}", root, json_file, metadata, "mrcnn-ext datasets scenes --clips")
            MetadataCatalog.get(f"{name}_{split}").set(pck_thresholds=(0.1, 0.2))


def _is_new(name: str, root: str) -> bool:
    if name not in DatasetCatalog.list():
        return True
    there = getattr(MetadataCatalog.get(name), "scenes_root", None)
    if there != root:
        raise ValueError(
            f"dataset {name!r} is already registered for {there}, not {root}: give another prefix, "
            "or set DETECTRON2_DATASETS to the folder that holds it before importing mrcnn_ext"
        )
    return False


def _need(path: str, name: str, root: str, command: str = _SCENES_COMMAND) -> None:
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"dataset {name!r} is not on disk: {path} is missing. Write it with `{command} {root}`"
        )


class _SceneLoader(CocoLoader):
    def __init__(self, name, json_file, image_root, command):
        super().__init__(name, json_file, image_root)
        self.command = command

    def load(self, problems):
        _need(self.json_file, self.name, self.image_root, self.command)
        return super().load(problems)


def _coco(name: str, root: str, json_file: str, metadata: dict, command: str = _SCENES_COMMAND) -> None:
    if not _is_new(name, root):
        return

    DatasetCatalog.register(name, _SceneLoader(name, json_file, root, command))
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=root,
        evaluator_type="coco",
        scenes_root=root,
        **metadata,
        **_KEYPOINTS,
    )


def _cityscapes(name: str, root: str, split: str) -> None:
    if not _is_new(name, root):
        return
    image_dir, gt_dir = os.path.join(root, "leftImg8bit", split), os.path.join(root, "gtFine", split)

    def load():
        _need(gt_dir, name, root)
        return load_cityscapes_instances(image_dir, gt_dir, from_json=True, to_polygons=True)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        image_dir=image_dir, gt_dir=gt_dir, evaluator_type="cityscapes_instance", scenes_root=root, **_CLASSES
    )
