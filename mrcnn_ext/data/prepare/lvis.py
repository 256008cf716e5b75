"""LVIS v1: 1203 categories on COCO 2017's images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..coco_file import CocoFile
from .coco import COCO_2017
from .parts import AnnotationFile, Archive, Plan
from .steps import check_annotation_files, check_counts, get_parts

__all__ = ["LVIS_V1", "LvisFile", "prepare_lvis"]

_HOST = "https://dl.fbaipublicfiles.com/LVIS"
_TRAIN = Archive("lvis_v1_train.json.zip", f"{_HOST}/lvis_v1_train.json.zip")
_VAL = Archive("lvis_v1_val.json.zip", f"{_HOST}/lvis_v1_val.json.zip")
LVIS_V1 = Plan(
    "LVIS v1",
    images=COCO_2017.images,
    files=(
        AnnotationFile("../lvis/lvis_v1_train.json", 100170, 1270141, _TRAIN, "."),
        AnnotationFile("../lvis/lvis_v1_val.json", 19809, 244707, _VAL, "."),
    ),
    terms="https://www.lvisdataset.org/dataset",
    unpack_to={_TRAIN.name: "../lvis", _VAL.name: "../lvis"},
)


class LvisFile(CocoFile):
    """An annotation file of LVIS, whose images have a "coco_url" in place of a name."""

    def _add_image(self, record: dict):
        if "file_name" not in record and isinstance(record.get("coco_url"), str):
            record = {**record, "file_name": "/".join(record["coco_url"].split("/")[-2:])}
        super()._add_image(record)


def prepare_lvis(
    root: str,
    *,
    archives: str | None = None,
    download: bool = False,
    plan: Plan = LVIS_V1,
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> bool:
    """Makes ``root`` what detectron2 registers as ``lvis_v1_train`` and ``lvis_v1_val``: annotations in
    ``$DETECTRON2_DATASETS/lvis``, the images of COCO 2017 in ``$DETECTRON2_DATASETS/coco``.

    Args:
        root: ``$DETECTRON2_DATASETS/coco``.
        archives: folder of the zip files; default ``root``.
        download, plan, progress, say: as for `prepare_coco`.

    Returns:
        bool: whether everything is right.

    Raises:
        FileNotFoundError, ValueError: as `prepare_coco`.
    """
    folder = Path(root)
    get_parts(plan, folder, Path(archives or root), download, progress, say)
    wrong = check_counts(plan, folder)
    for line in wrong:
        say(line)
    files = [(file.path, file.image_root) for file in plan.files]
    return check_annotation_files(files, folder, progress, say, LvisFile) and not wrong
