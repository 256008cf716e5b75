"""Finds what is wrong with a dataset before training starts."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from .check_cityscapes import check_cityscapes_tree
from .images import check_images as _check_images
from .loading import annotation_label, clean_dicts, load_dataset
from .problems import Problems
from .same_names import check_same_names
from .shares import Shares

__all__ = ["check_dataset", "check_same_names"]


def check_dataset(
    dataset: str | Sequence[dict],
    *,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    needs_masks: bool = False,
    masks_for: str = "",
    needs_keypoints: bool = False,
    needs_annotations: bool = True,
    mask_format: str = "polygon",
    check_images: bool = True,
    decode_images: bool = False,
    max_size: int = 1333,
    workers: int = 8,
    quiet: bool = False,
    sharded: bool = False,
) -> list[dict]:
    """
    Checks a dataset of detectron2's standard format: that its files are there and whole, and that a model can
    learn from its annotations. Everything that is wrong is told at once, a line for each kind, and what was mended
    (`clean_annotation`) or left out is logged as a warning. The dataset itself is left as it is.

    Every image's header is read and its file looked at for the format's end; JPEG and PNG files that have it are
    not decoded. That is quick, and finds truncated files, but not a damaged middle.

    Args:
        dataset: a registered name, or the dataset's dicts.
        num_classes: classes of the model; category ids must be below it.
        num_keypoints: keypoints of the model's keypoint head; checked where an annotation has keypoints.
        needs_masks: every annotation but crowds must have a segmentation.
        masks_for: what needs them, for messages; default the mask head.
        needs_keypoints: an annotation must have keypoints; those without count as having none visible.
        needs_annotations: at least one annotation that is no crowd must exist.
        mask_format: "polygon" or "bitmask", as INPUT.MASK_FORMAT; RLE needs "bitmask", except for crowds.
        check_images: whether to look at the image files.
        decode_images: decode them whole, which finds all damage and takes a hundred times as long.
        max_size: to which the longer side of an image is shrunk at most, INPUT.MAX_SIZE_TRAIN.
        workers: threads that look at image files.
        quiet: log no warnings of what was mended or left out.
        sharded: all processes of a training call this, with the same arguments. Each reads the annotations, which it
            trains on, and looks at its share of the images; all get the same findings, those of one process.

    Returns:
        list[dict]: the dataset's dicts, as training gets them.

    Raises:
        FileNotFoundError: a file of the dataset is missing.
        ValueError: anything else; the message names the dataset, the image, the annotation and what would be
            right.
    """
    shares = Shares(sharded)
    problems = _problems_of(dataset)
    dicts = list(shares.read(lambda: _read(dataset, problems), problems))
    if not dicts and not problems.errors:
        raise ValueError(f"dataset {problems.dataset!r} is empty: it has no images")
    fits = partial(
        _check_fit,
        num_classes=num_classes,
        num_keypoints=num_keypoints,
        needs_masks=needs_masks,
        masks_for=masks_for,
        mask_format=mask_format,
    )
    counts = shares.check(fits, dicts, problems)
    usable, with_keypoints = (sum(column) for column in zip(*counts, strict=True))
    if needs_annotations and not usable and not problems.errors:
        left_out = ": all were left out" if problems.warnings else ""
        problems.error(
            "nothing",
            "",
            f"it has {len(dicts)} images and no annotation to learn from (crowds do not count){left_out}",
        )
    if needs_keypoints and usable and not with_keypoints and not problems.errors:
        problems.error(
            "no-keypoints",
            "",
            "none of its annotations has a visible keypoint, which the model needs (without its keypoint head, "
            "MODEL.KEYPOINT_ON False, it does not)",
        )
    if check_images:
        look = partial(_check_images, workers=workers, max_size=max_size, decode=decode_images)
        shares.check(look, dicts, problems)
    if not quiet:
        problems.log_warnings()
    problems.raise_errors()
    return dicts


def _problems_of(dataset: str | Sequence[dict]) -> Problems:
    if not isinstance(dataset, str):
        return Problems("(given as dicts)")
    known = dataset in DatasetCatalog.list()
    file = MetadataCatalog.get(dataset).get("json_file") if known else None
    return Problems(dataset, os.fspath(file or ""))


def _read(dataset: str | Sequence[dict], problems: Problems) -> list[dict]:
    """The dicts, mended; what is wrong goes to ``problems``, or is raised where nothing can be read."""
    if not isinstance(dataset, str):
        return clean_dicts(dataset, problems)
    metadata = MetadataCatalog.get(dataset) if dataset in DatasetCatalog.list() else None
    if metadata and str(metadata.get("evaluator_type")).startswith("cityscapes_instance"):
        check_cityscapes_tree(dataset, metadata, problems)
        problems.raise_errors()  # detectron2's loader fails on what was found
    return load_dataset(dataset, problems)


def _check_fit(
    records: Sequence[dict],
    problems: Problems,
    *,
    num_classes: int | None,
    num_keypoints: int | None,
    needs_masks: bool,
    masks_for: str,
    mask_format: str,
) -> tuple[int, int]:
    """Whether annotations fit the model; the numbers of those that are no crowds, and that have a visible keypoint."""
    usable, with_keypoints = 0, 0
    for record in records:
        for number, annotation in enumerate(record.get("annotations", ())):
            crowd = bool(annotation["iscrowd"])
            usable += not crowd
            with_keypoints += any(v > 0 for v in annotation.get("keypoints", ())[2::3])
            for kind, text in _unfit(
                *(annotation, num_classes, num_keypoints, needs_masks and not crowd, mask_format, crowd),
                masks_for,
            ):
                problems.error(
                    kind, annotation_label(record, annotation, number), text, image=record.get("image_id")
                )
    return usable, with_keypoints


def _unfit(
    annotation, num_classes, num_keypoints, needs_mask, mask_format, crowd, masks_for=""
) -> Iterable[tuple[str, str]]:
    """Where a right annotation does not fit the model."""
    category = annotation["category_id"]
    if num_classes is not None and not 0 <= category < num_classes:
        yield (
            "class",
            f"category_id {category} is out of range: the model has {num_classes} classes, so it must be 0 "
            f"to {num_classes - 1} (after mapping to contiguous ids)",
        )
    segmentation = annotation.get("segmentation")
    if needs_mask and segmentation is None:
        reason = masks_for or "the mask head"
        yield "no-segmentation", f"it has no segmentation, which {reason} needs"
    if needs_mask and isinstance(segmentation, dict) and mask_format == "polygon" and not crowd:
        yield "rle", "its segmentation is no polygon: set INPUT.MASK_FORMAT to 'bitmask'"
    found = len(annotation.get("keypoints", ()))
    if num_keypoints is not None and found and found != 3 * num_keypoints:
        yield (
            "keypoints",
            f"it has {found / 3:g} keypoints ({found} numbers), but the model's keypoint head has "
            f"{num_keypoints} (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS): {3 * num_keypoints} numbers x, y, visibility "
            "are expected",
        )
