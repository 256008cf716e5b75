"""The report of ``mrcnn-ext datasets check``."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile

from .coco_file import CocoFile
from .data_file import read_data_file
from .description import read_description
from .pictures import draw_images, draw_pages
from .problems import Problems
from .same_names import check_same_names
from .survey import Survey, survey_coco_file, write_repaired

__all__ = ["FINE", "WRONG", "report_data_file", "report_dataset"]

FINE, WRONG = 0, 1  # exit codes


def report_dataset(
    dataset: str,
    images: str | None = None,
    *,
    pictures: str | None = None,
    num_pictures: int = 8,
    repair: str | None = None,
    decode_images: bool = False,
    strict: bool = False,
    workers: int = 8,
    progress: bool = True,
) -> int:
    """Prints what is in a dataset and what is wrong with it; draws and mends it if asked to.

    Args:
        dataset: annotation file of COCO's format, or the name of a registered dataset.
        images: folder that the file names of the images start from; None, for a file, leaves the images alone.
        pictures: folder for pictures of samples and of what is odd.
        num_pictures: samples among the pictures.
        repair: file for a mended copy of all that can be used.
        decode_images: decode the images whole: slow, finds all damage.
        strict: what is mended or left out counts as wrong, too.
        workers: threads that look at images.
        progress: show progress bars.

    Returns:
        `FINE` if it can be used, `WRONG` if it has errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read at all, or ``pictures`` are wanted of a file without ``images``.
    """
    if pictures and images is None and os.path.isfile(dataset):
        raise ValueError("--pictures needs --images, the folder of the images")
    with contextlib.ExitStack() as stack:
        path, image_root, others = _open(dataset, images, stack)
        survey = survey_coco_file(
            path,
            image_root,
            name=dataset,
            decode_images=decode_images,
            workers=workers,
            progress=progress,
        )
        survey.problems.findings = {**others, **survey.problems.findings}
        print(survey)
        if pictures:
            _draw(survey, path, image_root or "", pictures, num_pictures)
        if repair:
            done = write_repaired(survey, repair)
            print(
                f"\n{repair}: {done['images']} images, {done['annotations']} annotations; "
                f"{done['images_left_out']} images and {done['annotations_left_out']} annotations are left out"
                + (", and the rest is mended as above" if survey.problems.findings else "")
            )
        problems = survey.problems
        return WRONG if problems.errors or (strict and problems.warnings) else FINE


def report_data_file(path: str, *, pictures: str | None = None, repair: str | None = None, **options) -> int:
    """As `report_dataset`, for each part of a data file (`read_data_file`); pictures in a folder for each.

    Raises:
        ValueError: ``repair`` is given: a mended copy is of one annotation file.
    """
    if repair:
        raise ValueError(f"--repair writes a copy of one annotation file: name it instead of {path}")
    code = FINE
    with tempfile.TemporaryDirectory(prefix="check_dataset_") as folder:
        parts = read_data_file(path, folder).coco_format
        for number, (name, annotations, images, *_) in enumerate(parts):
            print(f"\n{name}:" if number else f"{name}:")
            drawn = os.path.join(pictures, name) if pictures else None
            code = max(code, report_dataset(annotations, images, pictures=drawn, **options))
        try:
            _check_orders(parts)
        except ValueError as error:
            print(f"\nerror: {error}")
            code = WRONG
    return code


def _check_orders(parts):
    """What a training on the parts of a data file would refuse: the same class, or keypoint, at different places."""
    classes, keypoints = {}, {}
    for name, json_file, _, *description in parts:
        file = CocoFile(json_file, Problems(name, json_file))
        listed = [category["name"] for category in file.categories]
        described = read_description(
            description[0] if description else None,
            classes=listed,
            keypoints=file.keypoint_names,
            where=f"dataset {name!r}",
            json_file=json_file,
        )
        classes[name] = described.get("names") or listed
        keypoints[name] = described.get("keypoints") or file.keypoint_names
    check_same_names("class", classes)
    check_same_names("keypoint", keypoints)


def _open(dataset: str, images: str | None, stack: contextlib.ExitStack) -> tuple[str, str | None, dict]:
    """Annotation file, folder of the images, and what was found on the way there."""
    if os.path.isfile(dataset) or dataset.endswith(".json"):
        return dataset, images, {}
    try:
        from detectron2.data import MetadataCatalog

        from .loading import coco_content, coco_loader
    except ImportError as error:
        raise FileNotFoundError(
            f"{dataset}: there is no such annotation file, and registered datasets need detectron2 ({error})"
        ) from error
    loader = coco_loader(dataset)
    if loader is not None:
        return loader.json_file, images or loader.image_root, {}
    problems = Problems(dataset)
    content = coco_content(dataset, problems)
    names = MetadataCatalog.get(dataset).get("keypoint_names")
    for category in content["categories"] if names else ():
        category.setdefault("keypoints", list(names))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="check_dataset_"))
    path = os.path.join(folder, "annotations.json")
    with open(path, "w") as file:
        json.dump(content, file, default=lambda value: value.decode("ascii"))
    return (
        path,
        MetadataCatalog.get(dataset).get("image_root", "") if images is None else images,
        problems.findings,
    )


def _draw(survey: Survey, path: str, image_root: str, folder: str, number: int):
    ids = sorted(survey.images_with_objects, key=str)
    step = max(1, len(ids) // max(1, number))
    samples = ids[::step][:number]
    odd = [
        image
        for finding in survey.problems.findings.values()
        for image in finding.images
        if image is not None
    ]
    written = draw_images(path, image_root, [*odd, *samples], folder)
    pages = draw_pages(written, folder)
    on_pages = f", and {len(pages)} pages of them, {os.path.basename(pages[0])} first" if pages else ""
    print(
        f"\n{folder}: {len(written)} pictures, of what is odd first and of {len(samples)} samples{on_pages}"
    )
