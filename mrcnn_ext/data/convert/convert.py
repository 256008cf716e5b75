"""From any of the formats to an annotation file and the line of a config that names it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import yaml

from ...files import replacing
from ..video import VIDEO_READERS
from .cityscapes import read_cityscapes
from .coco_writer import write_coco, write_json
from .cvat import read_cvat
from .labelme import read_labelme
from .mask_folder import read_mask_folder
from .pascal_voc import read_pascal_voc
from .yolo import read_yolo

__all__ = ["FORMATS", "Converted", "convert_dataset"]

FORMATS = {
    "yolo": read_yolo,
    "voc": read_pascal_voc,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "cityscapes": read_cityscapes,
    "masks": read_mask_folder,
}


@dataclass
class Converted:
    """What `convert_dataset` has written.

    Attributes:
        annotations: the COCO file.
        image_root: folder that its file names start from.
        description: file of what COCO's format has no place for, "" if there is nothing.
        images, objects, categories: how many there are.
    """

    annotations: str
    image_root: str
    description: str
    images: int
    objects: int
    categories: int

    def config_line(self, name: str) -> str:
        """The line of ``DATASETS`` in a yaml config."""
        entry = [name, self.annotations, self.image_root, *([self.description] if self.description else [])]
        return f"COCO_FORMAT: [{json.dumps(entry)}]"


def convert_dataset(kind: str, source: str, output: str, split: str | None = None) -> Converted:
    """Converts a dataset to COCO's format; images stay where they are.

    Args:
        kind: one of `FORMATS`: "yolo" (`read_yolo`), "voc" (`read_pascal_voc`), "labelme" (`read_labelme`), "cvat"
            (`read_cvat`), "cityscapes" (`read_cityscapes`) or "masks" (`read_mask_folder`); or of people in video, one
            of `mrcnn_ext.data.video.VIDEO_READERS`: "penn_action", "bbc_pose", "jhmdb", "posetrack18".
        source: the folder or file that its reader takes.
        output: the new annotation file. A description comes beside it as ``.description.yaml``, if there is one.
        split: part of the data, where the format has parts.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: the format is unknown, or a file is not as it should be; names the file.
    """
    if kind in VIDEO_READERS:
        return _convert_video(kind, os.fspath(source), os.fspath(output), split)
    if kind not in FORMATS:
        raise ValueError(f"format {kind!r} is unknown; known are {', '.join((*FORMATS, *VIDEO_READERS))}")
    found = FORMATS[kind](os.fspath(source), split)
    image_root = os.fspath(source) if os.path.isdir(source) else os.path.dirname(os.fspath(source)) or "."
    counts = write_coco(found, os.fspath(output), image_root)
    description = ""
    if found.description:
        description = os.path.splitext(os.fspath(output))[0] + ".description.yaml"
        with replacing(description, "w", by_several=True) as file:
            yaml.safe_dump(found.description, file, sort_keys=False)
    return Converted(
        os.fspath(output),
        image_root,
        description,
        counts["images"],
        counts["annotations"],
        counts["categories"],
    )


def _convert_video(kind: str, source: str, output: str, split: str | None) -> Converted:
    content = VIDEO_READERS[kind](source, split)
    if not content["images"]:
        raise ValueError(f"no images were found for {output}")
    write_json(content, output)
    return Converted(output, source, "", len(content["images"]), len(content["annotations"]), 1)
