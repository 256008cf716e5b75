"""The steps that all datasets share: what is there, unpacking, counting, the check of custom data."""

from __future__ import annotations

import os
from pathlib import Path

from ..coco_file import CocoFile
from ..survey import survey_coco_file
from .archives import check_archive, download_archive, unpack
from .parts import AnnotationFile, Archive, Images, Plan, count_images, count_sections

__all__ = ["check_annotation_files", "check_counts", "get_parts"]


def get_parts(plan: Plan, root: Path, archives: Path, download: bool, progress: bool, say=print) -> None:
    """Unpacks, after downloading if asked to, whatever of a dataset is not there in full.

    Args:
        plan: of the dataset.
        root: where it is to be.
        archives: where its archives are, or come to.
        download: get what is missing from the publisher, where that needs no account.
        progress: show progress bars.
        say: is called with a line for each part.

    Raises:
        FileNotFoundError: a part is missing; says all that are, and how to get them.
        ValueError: an archive is damaged.
    """
    lacking = {archive: _lacking(plan, archive, root) for archive in plan.archives}
    for archive, parts in lacking.items():
        for part in _parts(plan, archive):
            say(f"{_place(part)}: {'to come from ' + archive.name if part in parts else 'there'}")
    missing = []
    for archive, parts in lacking.items():
        path = archives / archive.name
        if parts and not path.is_file() and not (download and archive.url):
            missing.append((archive, parts))
    if missing:
        raise FileNotFoundError(_how_to_get(plan, missing, archives, download))
    for archive, parts in lacking.items():
        if not parts:
            continue
        path = archives / archive.name
        if not path.is_file():
            download_archive(archive, archives, progress)
        check_archive(path, archive)
        written = unpack(path, root / plan.unpack_to.get(archive.name, ""), progress)
        say(f"{path}: {written} files unpacked, their checksums are right")


def _place(part: AnnotationFile | Images) -> str:
    """In the root, or beside it."""
    return (part.folder if isinstance(part, Images) else part.path).removeprefix("../")


def _parts(plan: Plan, archive: Archive) -> list[AnnotationFile | Images]:
    return [part for part in plan.parts if part.archive == archive]


def _lacking(plan: Plan, archive: Archive, root: Path) -> list[AnnotationFile | Images]:
    lacking: list[AnnotationFile | Images] = []
    for part in _parts(plan, archive):
        if isinstance(part, Images):
            folder = root / part.folder
            if count_images(folder, part.suffix) < part.count:
                lacking.append(part)
        elif not (root / part.path).is_file():
            lacking.append(part)
    return lacking


def _how_to_get(plan: Plan, missing, archives: Path, download: bool) -> str:
    lines = [f"{plan.name}: {len(missing)} of its {len(plan.archives)} archives are needed and not there:"]
    for archive, parts in missing:
        places = ", ".join(map(_place, parts))
        size = f", {archive.size / 2**30:.1f} GiB" if archive.size else ""
        lines.append(f"  {archives / archive.name}{size} (for {places})")
        if archive.url:
            lines.append(f"    from {archive.url}")
    if any(not archive.url for archive, _ in missing):
        lines.append(plan.how)
    elif not download:
        lines.append("Put them there, or give --download to get them from the publisher.")
    if plan.terms:
        lines.append(f"The publisher's terms: {plan.terms}")
    return "\n".join(lines)


def check_counts(plan: Plan, root: Path) -> list[str]:
    """Compares numbers of images and annotations with the published ones; returns what differs."""
    wrong = []
    for part in plan.images:
        found = count_images(root / part.folder, part.suffix)
        if found != part.count:
            wrong.append(f"{root / part.folder}: {found} images, the publisher's {part.count}")
    for file in plan.files:
        images, annotations = count_sections(root / file.path)
        for what, found, expected in (
            ("images", images, file.images),
            ("annotations", annotations, file.annotations),
        ):
            if found != expected:
                path = os.path.normpath(root / file.path)
                wrong.append(f"{path}: {found} {what}, the publisher's {expected}")
    return wrong


def check_annotation_files(
    files, root: Path, progress: bool, say=print, file_class: type[CocoFile] = CocoFile
) -> bool:
    """The check of custom data (`survey_coco_file`) of each annotation file; its report is said.

    Args:
        files: (path, folder of the images), both in ``root``.

    Returns:
        bool: whether all can be used.
    """
    fine, seen = True, set()
    for path, image_root in files:
        # Files of one folder have the same images, which are looked at once; "." holds the images of several.
        first = image_root == "." or image_root not in seen
        seen.add(image_root)
        survey = survey_coco_file(
            os.path.normpath(root / path),
            str(root / image_root) if first else None,
            progress=progress,
            file_class=file_class,
        )
        say(f"\n{survey}")
        fine &= not survey.problems.errors
    return fine
