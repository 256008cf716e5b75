"""COCO 2017 and 2014: instances, person keypoints, and the split that papers before 2017 use."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from ...files import replacing
from .parts import AnnotationFile, Archive, Images, Plan
from .steps import check_annotation_files, check_counts, get_parts

__all__ = ["COCO_2014", "COCO_2017", "minival_ids", "prepare_coco", "write_trainval35k"]

_TERMS = "https://cocodataset.org/#termsofuse"
_HOST = "http://images.cocodataset.org"
_TRAIN_2017 = Archive("train2017.zip", f"{_HOST}/zips/train2017.zip", 19336861798)
_VAL_2017 = Archive("val2017.zip", f"{_HOST}/zips/val2017.zip", 815585330)
_ANNOTATIONS_2017 = Archive(
    "annotations_trainval2017.zip", f"{_HOST}/annotations/annotations_trainval2017.zip", 252907541
)
_TRAIN_2014 = Archive("train2014.zip", f"{_HOST}/zips/train2014.zip")
_VAL_2014 = Archive("val2014.zip", f"{_HOST}/zips/val2014.zip")
_ANNOTATIONS_2014 = Archive(
    "annotations_trainval2014.zip", f"{_HOST}/annotations/annotations_trainval2014.zip"
)


def _file(kind: str, part: str, images: int, annotations: int, archive: Archive) -> AnnotationFile:
    return AnnotationFile(f"annotations/{kind}_{part}.json", images, annotations, archive, part)


COCO_2017 = Plan(
    "COCO 2017",
    images=(Images("train2017", 118287, _TRAIN_2017), Images("val2017", 5000, _VAL_2017)),
    files=(
        _file("instances", "train2017", 118287, 860001, _ANNOTATIONS_2017),
        _file("instances", "val2017", 5000, 36781, _ANNOTATIONS_2017),
        _file("person_keypoints", "train2017", 118287, 262465, _ANNOTATIONS_2017),
        _file("person_keypoints", "val2017", 5000, 11004, _ANNOTATIONS_2017),
    ),
    terms=_TERMS,
)
COCO_2014 = Plan(
    "COCO 2014",
    images=(Images("train2014", 82783, _TRAIN_2014), Images("val2014", 40504, _VAL_2014)),
    files=(
        _file("instances", "train2014", 82783, 604907, _ANNOTATIONS_2014),
        _file("instances", "val2014", 40504, 291875, _ANNOTATIONS_2014),
        _file("person_keypoints", "train2014", 82783, 185316, _ANNOTATIONS_2014),
        _file("person_keypoints", "val2014", 40504, 88153, _ANNOTATIONS_2014),
    ),
    terms=_TERMS,
)
_MINIVAL = 5000  # images


def prepare_coco(
    root: str,
    *,
    archives: str | None = None,
    download: bool = False,
    minival: str | None = None,
    plan: Plan | None = None,
    num_minival: int = _MINIVAL,
    progress: bool = True,
    say: Callable[[str], object] = print,
) -> bool:
    """Makes ``root`` what detectron2 registers as ``coco_2017_*`` and ``keypoints_coco_2017_*`` (or 2014).

    COCO's trainval35k, on which papers before 2017 train, is train2017, and their minival is val2017: the same images
    and annotations. For the files of 2014, ``minival`` gives the list, and ``instances_minival2014.json``,
    ``instances_valminusminival2014.json`` and the same of the person keypoints are written.

    Args:
        root: ``$DETECTRON2_DATASETS/coco``.
        archives: folder of the zip files; default ``root``.
        download: get the archives that are missing.
        minival: of COCO 2014 in place of 2017: which images of val2014 are minival. An annotation file of them
            (``instances_minival2014.json``, or COCO 2017's ``instances_val2017.json``), or a list of image ids or
            names of files, as JSON or a line each.
        plan: what to expect; default `COCO_2017`, or `COCO_2014` with ``minival``.
        num_minival: images of minival.
        progress: show progress bars.
        say: is called with lines of text.

    Returns:
        bool: whether everything is right.

    Raises:
        FileNotFoundError: parts are missing; says which and where to get them.
        ValueError: an archive or list is damaged or of something else.
    """
    plan = plan or (COCO_2014 if minival else COCO_2017)
    folder = Path(root)
    ids = minival_ids(Path(minival), num_minival) if minival else None
    get_parts(plan, folder, Path(archives or root), download, progress, say)
    wrong = check_counts(plan, folder)
    for line in wrong:
        say(line)
    files = [(file.path, file.image_root) for file in plan.files]
    if ids is not None:
        for kind in ("instances", "person_keypoints"):
            written = write_trainval35k(folder / "annotations", kind, ids)
            say(f"{', '.join(map(str, written))}: written")
            files += [(str(path.relative_to(folder)), "val2014") for path in written]
    return check_annotation_files(files, folder, progress, say) and not wrong


def minival_ids(path: Path, count: int = _MINIVAL) -> set[int]:
    """The image ids of a list of minival.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no list of images, or not of ``count``.
    """
    text = path.read_text()
    try:
        content = json.loads(text)
    except ValueError:
        content = text.split()
    if isinstance(content, dict):
        content = [image.get("id") for image in content.get("images", [])]
    if not isinstance(content, list):
        content = [content]
    ids = set()
    for entry in content:
        match = re.search(r"(\d+)(\.\w+)?$", str(entry))
        if match is None:
            raise ValueError(
                f"{path}: {entry!r} is neither an image id nor the name of a file: minival is an annotation file, or "
                "a list of ids or of names as COCO_val2014_000000000042.jpg"
            )
        ids.add(int(match[1]))
    if len(ids) != count:
        raise ValueError(f"{path} lists {len(ids)} images, minival has {count}")
    return ids


def write_trainval35k(folder: Path, kind: str, minival: set[int]) -> list[Path]:
    """Divides ``<kind>_val2014.json`` into ``<kind>_minival2014.json`` and ``<kind>_valminusminival2014.json``.

    Raises:
        ValueError: an image of ``minival`` is not in it.
    """
    source = folder / f"{kind}_val2014.json"
    content = json.loads(source.read_text())
    known = {image["id"] for image in content["images"]}
    if not minival <= known:
        raise ValueError(
            f"{source} lacks {len(minival - known)} of the {len(minival)} images of minival, as "
            f"{min(minival - known)}: is the list of other data?"
        )
    written = []
    for name, inside in (("minival", True), ("valminusminival", False)):
        part = {
            **content,
            "images": [i for i in content["images"] if (i["id"] in minival) == inside],
            "annotations": [a for a in content["annotations"] if (a["image_id"] in minival) == inside],
        }
        path = folder / f"{kind}_{name}2014.json"
        with replacing(path, "w") as file:
            json.dump(part, file)
        written.append(path)
    return written
