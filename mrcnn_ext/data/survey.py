"""A dataset in COCO's format looked at as a whole: what is wrong, what is in it, and a mended copy.

Runs without detectron2 and in little memory: annotations are read one at a time.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from ..files import replacing
from .coco_file import CocoFile
from .images import check_images
from .problems import Problems

__all__ = ["Survey", "survey_coco_file", "write_repaired"]

_SMALL, _LARGE = 32**2, 96**2  # pixels, COCO's limits of small and large objects
_SCALES = ("small", "medium", "large")
_MOST_ROWS = 100


@dataclass
class Survey:
    """What `survey_coco_file` has found.

    Attributes:
        file: the annotation file's head: images, categories, names of keypoints.
        problems: everything that is wrong, was mended or is left out.
        instances: objects by (category id, "small", "medium", "large" or "crowd"); left out ones are not counted.
        keypoints: objects by (place of the keypoint, "seen", "hidden" or "absent"), crowds not counted.
        images_with_objects: images that have an object which is no crowd.
        unreadable_images: ids of images whose files are missing, damaged or of another size.
    """

    file: CocoFile
    problems: Problems
    instances: Counter = field(default_factory=Counter)
    keypoints: Counter = field(default_factory=Counter)
    images_with_objects: set = field(default_factory=set)
    unreadable_images: set = field(default_factory=set)

    def add(self, annotation: dict) -> None:
        """Counts a mended annotation."""
        if annotation["iscrowd"]:
            self.instances[annotation["category_id"], "crowd"] += 1
            return
        area = annotation["area"]
        scale = "small" if area < _SMALL else "medium" if area < _LARGE else "large"
        self.instances[annotation["category_id"], scale] += 1
        self.images_with_objects.add(annotation["image_id"])
        for place, visibility in enumerate(annotation.get("keypoints", ())[2::3]):
            self.keypoints[
                place, "absent" if visibility <= 0 else "hidden" if visibility < 2 else "seen"
            ] += 1

    def __str__(self) -> str:
        return "\n\n".join(
            part for part in (self._head(), self._classes(), self._keypoints(), self._found()) if part
        )

    def _head(self) -> str:
        objects = sum(count for (_, scale), count in self.instances.items() if scale != "crowd")
        return (
            f"{self.file.path}: {len(self.file.images)} images, {len(self.images_with_objects)} of them with objects; "
            f"{objects} objects of {len(self.file.categories)} classes, {self.file.num_annotations} annotations"
        )

    def _classes(self) -> str:
        rows = []
        for category in self.file.categories:
            counts = [self.instances[category["id"], scale] for scale in (*_SCALES, "crowd")]
            rows.append([str(category["id"]), category["name"], *counts[:3], sum(counts[:3]), counts[3]])
        return table(["id", "class", *_SCALES, "all", "crowds"], rows)

    def _keypoints(self) -> str:
        names = self.file.keypoint_names or [f"keypoint {k}" for k in range(self.file.num_keypoints or 0)]
        kinds = ("seen", "hidden", "absent")
        return table(
            ["keypoint", *kinds],
            [[name, *(self.keypoints[k, kind] for kind in kinds)] for k, name in enumerate(names)],
        )

    def _found(self) -> str:
        if not self.problems.findings:
            return "Nothing is wrong with it."
        lines = []
        for title, findings in (
            ("Errors, with which it cannot be used", self.problems.errors),
            ("Mended when it is read, or left out", self.problems.warnings),
        ):
            if findings:
                lines.append(f"{title}:")
            for finding in findings:
                first, *others = finding.examples
                lines.append(f"  {finding.count} x {first}")
                lines += [f"      {example}" for example in others]
        return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Text in columns, the first one to the left, numbers to the right; "" without rows."""
    rows = [[str(cell) for cell in row] for row in rows]
    if not rows:
        return ""
    hidden = len(rows) - _MOST_ROWS
    rows = rows[:_MOST_ROWS]
    widths = [max(len(row[k]) for row in [list(head), *rows]) for k in range(len(head))]
    is_number = [all(row[k].lstrip("-").isdigit() for row in rows) for k in range(len(head))]
    lines = [
        "  ".join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, is_number, strict=True)
        ).rstrip()
        for row in [list(head), *rows]
    ]
    return "\n".join([*lines, *([f"... and {hidden} more"] if hidden > 0 else [])])


def survey_coco_file(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    *,
    name: str | None = None,
    decode_images: bool = False,
    max_size: int = 1333,
    workers: int = 8,
    progress: bool = False,
    file_class: type[CocoFile] = CocoFile,
) -> Survey:
    """Reads a whole annotation file, and looks at its image files.

    Args:
        path: of the annotation file.
        image_root: folder that the file names of the images start from; None leaves the images alone.
        name: of the dataset, for messages; default the file's.
        decode_images: decode the images whole, which finds all damage and takes a hundred times as long.
        max_size: to which the longer side of an image is shrunk at most, INPUT.MAX_SIZE_TRAIN.
        workers: threads that look at image files.
        progress: show progress bars.
        file_class: reads the file; a subclass for a format that is COCO's but for details.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no annotation file.
    """
    problems = Problems(name or os.path.basename(path), os.fspath(path))
    file = file_class(path, problems)
    survey = Survey(file, problems)
    annotations = file.annotations()
    for annotation in tqdm(annotations, "annotations", file.num_annotations, disable=not progress, unit=""):
        survey.add(annotation)
    if file.has_annotations and not survey.images_with_objects and not problems.errors:
        problems.error("nothing", "", "it has no annotation to learn from (crowds do not count)")
    if image_root is not None:
        survey.unreadable_images = check_images(
            list(file.images.values()),
            problems,
            root=os.fspath(image_root),
            workers=workers,
            progress=progress,
            max_size=max_size,
            decode=decode_images,
        )
    return survey


def write_repaired(survey: Survey, output: str | os.PathLike) -> dict:
    """Writes a mended copy of a surveyed annotation file, of all that can be used.

    Left out are annotations with errors and with empty boxes, those of images that are not there, images whose files
    cannot be read or have another size than the annotations say, and images that share an id, with their objects.

    Args:
        survey: of `survey_coco_file`.
        output: the new file; it is there when it is whole.

    Returns:
        {"images", "annotations", "images_left_out", "annotations_left_out"}: numbers of each.

    Raises:
        ValueError: ``output`` is the surveyed file.
    """
    file = survey.file
    if os.path.realpath(output) == os.path.realpath(file.path):
        raise ValueError(
            f"{os.fspath(output)} is the file that is to be repaired: give the copy another name"
        )
    left_out = survey.unreadable_images | file.repeated_images
    again = CocoFile(file.path, Problems(survey.problems.dataset, file.path))
    images = [record for key, record in again.images.items() if key not in left_out]
    count = 0
    with replacing(output, "w") as out:
        out.write("{")
        for key, value in {**again.other, "categories": again.categories, "images": images}.items():
            out.write(f"{json.dumps(key)}: {json.dumps(value)}, ")
        out.write('"annotations": [')
        for annotation in again.annotations():
            if annotation["image_id"] in left_out:
                continue
            annotation.pop("undrawable", None)
            out.write(",\n" if count else "\n")
            out.write(json.dumps(annotation, default=_as_text))
            count += 1
        out.write("\n]}\n")
    return {
        "images": len(images),
        "annotations": count,
        "images_left_out": len(again.images) + _unusable_images(again) - len(images),
        "annotations_left_out": again.num_annotations - count,
    }


def _unusable_images(file: CocoFile) -> int:
    kinds = ("image-id", "image-file-name", "image-id-twice", "image-size")
    return sum(finding.count for finding in file.problems.errors if finding.kind in kinds)


def _as_text(value):
    """The counts of RLE are bytes."""
    return value.decode("ascii")
