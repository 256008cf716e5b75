"""Registered datasets as training, checks, evaluators and pictures read them."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.structures import BoxMode

from .annotations import clean_annotation, plain_number
from .coco_file import MOST_STRAYING, CocoFile, check_box
from .problems import Problems, Unusable, kind_of
from .proposals import add_proposals
from .reading_once import file_key, kept

__all__ = [
    "CocoLoader",
    "clean_dicts",
    "coco_content",
    "coco_loader",
    "get_detection_dataset_dicts",
    "load_dataset",
    "not_on_disk",
]

# What TAO and COCO-VID add to the records of images that are frames of a video.
_OF_VIDEO = ("video_id", "frame_index", "frame_id")
_PREPARED = r"(?:keypoints_)?(coco)_20|(cityscapes)_fine_|(lvis)_v1_"  # by mrcnn_ext.data.prepare
_STOCK_LOADER = ("detectron2.data.datasets.coco", "register_coco_instances.<locals>.<lambda>")


class CocoLoader:
    """What is registered for a dataset in COCO's format: gives its dicts, mended, and sets its metadata.

    Args:
        name: of the dataset.
        json_file: annotations.
        image_root: folder that the file names of the images start from.
    """

    def __init__(self, name: str, json_file: str, image_root: str):
        self.name, self.json_file, self.image_root = name, json_file, image_root

    def __call__(self) -> list[dict]:
        problems = Problems(self.name, self.json_file)
        dicts = self.load(problems)
        problems.raise_errors()
        return dicts

    def load(self, problems: Problems) -> list[dict]:
        """The dicts of all that can be used; what is wrong goes to ``problems``."""
        file = CocoFile.shared(self.json_file, problems)
        metadata = MetadataCatalog.get(self.name)
        contiguous = {category["id"]: k for k, category in enumerate(file.categories)}
        _set_classes(self.name, metadata, [category["name"] for category in file.categories], contiguous)
        dicts = {
            key: {
                "file_name": os.path.join(self.image_root, record["file_name"]),
                "height": record["height"],
                "width": record["width"],
                "image_id": key,
                **{name: record[name] for name in _OF_VIDEO if name in record},
                "annotations": [],
            }
            for key, record in sorted(file.images.items(), key=lambda item: (str(type(item[0])), item[0]))
        }
        for annotation in file.annotations(renumber=False):
            if annotation.get("undrawable"):  # as detectron2's loader
                continue
            kept = {
                key: annotation[key]
                for key in ("id", "iscrowd", "bbox", "area", "segmentation", "keypoints", "track_id")
                if key in annotation
            }
            kept["category_id"] = contiguous[annotation["category_id"]]
            kept["bbox_mode"] = BoxMode.XYWH_ABS
            if "keypoints" in kept:
                kept["keypoints"] = _moved(kept["keypoints"], 0.5)
            dicts[annotation["image_id"]]["annotations"].append(kept)
        return list(dicts.values())


def _set_classes(name: str, metadata, classes: list[str], contiguous: dict):
    """What was registered stays, if it fits the file."""
    known = metadata.get("thing_classes")
    if known and len(known) != len(classes):
        raise ValueError(
            f"dataset {name!r} was registered with {len(known)} classes ({', '.join(known[:5])}), its annotation file "
            f"has {len(classes)} ({', '.join(classes[:5])})"
        )
    if not known:
        metadata.thing_classes = classes
    if metadata.get("thing_dataset_id_to_contiguous_id", contiguous) != contiguous:
        raise ValueError(
            f"dataset {name!r} was registered with thing_dataset_id_to_contiguous_id "
            f"{metadata.thing_dataset_id_to_contiguous_id}, its annotation file has {contiguous}"
        )
    metadata.thing_dataset_id_to_contiguous_id = contiguous


def not_on_disk(name: str, missing: str) -> FileNotFoundError:
    """The error that a registered dataset's file or folder is missing, with how to get the dataset."""
    known = re.match(_PREPARED, name)
    how = (
        f"`mrcnn-ext datasets prepare {known[known.lastindex or 0]}` gets it ready"
        if known
        else "datasets/README.md says how to get it"
    )
    return FileNotFoundError(
        f"dataset {name!r} is not on disk: {missing} is missing. {how}; set DETECTRON2_DATASETS if it lies elsewhere"
    )


def load_dataset(name: str, problems: Problems | None = None) -> list[dict]:
    """The dicts of a registered dataset, each annotation mended as by `clean_annotation`.

    What the registered function gives is left as it is: these are copies, and within `reading_once` everybody's, which
    are not to be changed. A dataset that detectron2's
    ``register_coco_instances`` registered is read as one by our ``register_coco_format``.

    Args:
        name: of the dataset.
        problems: takes what is wrong, to be told by the caller. Without it, errors are raised.

    Raises:
        FileNotFoundError: a file of the dataset is missing.
        ValueError: it is not registered, cannot be read, or, without ``problems``, has errors.
    """
    loader = coco_loader(name)
    found = problems if problems is not None else Problems(name, loader.json_file if loader else "")
    try:
        dicts, others = kept(_reading_key(name, loader), lambda: _read(name, loader, found.source))
        found.include(others)
    except FileNotFoundError as error:
        if repr(name) in str(error):
            raise
        raise not_on_disk(name, error.filename or str(error)) from error
    except Exception as error:
        if repr(name) in str(error):
            raise
        metadata = MetadataCatalog.get(name)
        where = getattr(metadata, "json_file", getattr(metadata, "gt_dir", "its annotations"))
        raise ValueError(
            f"dataset {name!r} cannot be read from {where}: {type(error).__name__}: {error}"
        ) from error
    if problems is None:
        found.raise_errors()
    return dicts


def _reading_key(name: str, loader: CocoLoader | None) -> tuple:
    if loader is None:
        return "dicts", name, DatasetCatalog[name]
    there = os.path.exists(loader.json_file)  # what is missing is told by who reads it
    return "dicts", name, loader.image_root, file_key(loader.json_file) if there else None


def _read(name: str, loader: CocoLoader | None, source: str) -> tuple[list[dict], Problems]:
    problems = Problems(name, source)
    return loader.load(problems) if loader else clean_dicts(DatasetCatalog.get(name), problems), problems


def coco_loader(name: str) -> CocoLoader | None:
    """What reads a dataset that is registered as an annotation file of COCO's format; None for any other.

    Raises:
        ValueError: it is not registered.
    """
    if name not in DatasetCatalog.list():
        close = difflib.get_close_matches(name, DatasetCatalog.list(), 3)
        hint = (
            f"did you mean {' or '.join(map(repr, close))}?"
            if close
            else "register it; there is no such file"
        )
        raise ValueError(f"dataset {name!r} is not registered: {hint}")
    function = DatasetCatalog[name]
    if isinstance(function, CocoLoader):
        return function
    if (getattr(function, "__module__", ""), getattr(function, "__qualname__", "")) != _STOCK_LOADER:
        return None
    metadata = MetadataCatalog.get(name)
    return CocoLoader(name, os.fspath(metadata.json_file), os.fspath(metadata.image_root))


def clean_dicts(dicts: Sequence[dict], problems: Problems) -> list[dict]:
    """Copies of dicts of detectron2's standard format with every annotation mended; keypoints stay in continuous
    coordinates and boxes in their mode. Annotations that cannot be used are left out, with an error in ``problems``."""
    dicts = list(dicts)
    num_keypoints = _number_of_keypoints(dicts)
    clean, total = [], 0
    ids: dict = {}
    for record in dicts:
        if not isinstance(record, dict):
            problems.error("record", "", f"a record must be a dict, got {type(record).__name__}")
            continue
        image = _clean_record(record, problems)
        if image is None:
            continue
        image_id = image.get("image_id")
        if image_id is not None:
            other = ids.setdefault(image_id, image)
            if other is not image:
                text = f"{other['file_name']} has the same image_id: every image needs its own"
                problems.error("image-id-twice", f"image {image_label(image)}", text, image=image_id)
        if "annotations" in record:
            annotations = record["annotations"]
            total += len(annotations)
            cleaned = (_clean_dict(a, k, image, num_keypoints, problems) for k, a in enumerate(annotations))
            image["annotations"] = [a for a in cleaned if a is not None]
        clean.append(image)
    for kind in ("bbox-outside", "bbox-relative"):
        problems.judge_share(kind, total, MOST_STRAYING)
    return clean


def _clean_record(record: dict, problems: Problems) -> dict | None:
    image = dict(record)
    for key in ("file_name", "height", "width"):
        if key not in record:
            problems.error("record", f"image {image_label(record)}", f"its record has no {key!r}")
            return None
    image["file_name"] = os.fspath(record["file_name"])
    if isinstance(record.get("image_id"), np.generic):
        image["image_id"] = record["image_id"].item()
    for key in ("height", "width"):
        try:
            image[key] = int(plain_number(record[key]))
        except Unusable as problem:
            problems.error("record", f"image {image_label(record)}", f"its {key}: {problem}")
            return None
    return image


def _number_of_keypoints(dicts: Sequence[dict]) -> int | None:
    """That of most annotations with keypoints; None if none has any."""
    counts: Counter[int] = Counter()
    for record in dicts:
        for annotation in record.get("annotations", ()) if isinstance(record, dict) else ():
            keypoints = annotation.get("keypoints") if isinstance(annotation, dict) else None
            if keypoints is not None and len(keypoints):
                nested = isinstance(keypoints[0], (list, tuple, np.ndarray))
                counts[len(keypoints) if nested else len(keypoints) // 3] += 1
    return counts.most_common(1)[0][0] if counts else None


def image_label(record: dict) -> str:
    """Names an image by its id and file."""
    return f"{record.get('image_id', '?')} ({record.get('file_name', 'no file name')})"


def annotation_label(record: dict, annotation, number: int) -> str:
    """Names an annotation by the ids of its image and its own, or its place among those of the image."""
    known = isinstance(annotation, dict) and "id" in annotation
    which = f"id {annotation['id']}" if known else f"number {number} (from 0)"
    return f"image {image_label(record)}, annotation {which}"


def _clean_dict(annotation, number: int, image: dict, num_keypoints: int | None, problems: Problems):
    def where():
        return annotation_label(image, annotation, number)

    image_id = image.get("image_id")

    def note(kind, text):
        problems.warn(kind, where, text, image=image_id)

    try:
        return _clean(annotation, image, num_keypoints, note)
    except Unusable as problem:
        problems.error(kind_of(str(problem)), where, str(problem))
    except Exception as error:  # what nobody foresaw has a place too
        problems.error("unreadable", where, f"it cannot be read: {type(error).__name__}: {error}")
    return None


def _clean(annotation: dict, image: dict, num_keypoints: int | None, note) -> dict | None:
    if not isinstance(annotation, dict):
        raise Unusable(f"an annotation must be a dict, got {type(annotation).__name__}")
    category = annotation.get("category_id")
    if isinstance(category, bool) or not isinstance(category, (int, np.integer)):
        raise Unusable(f"category_id must be an integer, got {category!r}")
    if "bbox" not in annotation:
        raise Unusable("it has no bbox")
    if "bbox_mode" not in annotation:
        raise Unusable("it has no bbox_mode (a detectron2 BoxMode)")
    mode = BoxMode(annotation["bbox_mode"])
    try:
        given = [float(plain_number(v)) for v in _as_list(annotation["bbox"])]
    except Unusable as problem:
        raise Unusable(f"its bbox: {problem}") from None
    if mode == BoxMode.XYWHA_ABS and len(given) == 5:
        box = [float(v) for v in BoxMode.convert([given], mode, BoxMode.XYXY_ABS)[0]]
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    else:
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            raise Unusable(
                f"its bbox_mode must be XYXY_ABS, XYWH_ABS or XYWHA_ABS (rotated), got {mode.name}"
            )
        if len(given) != 4:
            raise Unusable(
                f"its bbox must have 4 numbers (5 if rotated, with bbox_mode XYWHA_ABS), got {given} ({mode.name})"
            )
        box = [float(v) for v in BoxMode.convert(given, mode, BoxMode.XYWH_ABS)]
    try:
        clean = clean_annotation(
            {**annotation, "bbox": box}, image["height"], image["width"], note, num_keypoints
        )
    except Unusable as problem:
        raise Unusable(str(problem).replace("(x, y, width, height)", f"from {given} ({mode.name})")) from None
    clean["category_id"] = int(category)
    if mode != BoxMode.XYWHA_ABS:  # rotated boxes may leave the image
        check_box(clean["bbox"], image["height"], image["width"], note)
    if min(clean["bbox"][2:]) <= 0:
        note("bbox-empty", f"its bbox {given} is empty: it is left out")
        return None
    if clean.pop("undrawable", False) and not clean["iscrowd"]:
        note("undrawable", "nothing of its segmentation can be drawn: it is left out")
        return None
    if clean["bbox"] == box:
        clean["bbox"], clean["bbox_mode"] = given, mode
    else:  # taken from the segmentation
        clean["bbox_mode"] = BoxMode.XYWH_ABS
    return clean


def _as_list(values) -> list:
    if isinstance(values, np.ndarray):
        return values.reshape(-1).tolist()
    if not isinstance(values, (list, tuple)):
        raise Unusable(f"it must be a list of numbers, got {values!r}")
    return list(values)


def _moved(keypoints: Sequence[float], by: float) -> list[float]:
    """Keypoints from pixel indices to continuous coordinates, or back; all, as detectron2's loader does it."""
    return [v if k % 3 == 2 else v + by for k, v in enumerate(keypoints)]


def coco_content(name: str, problems: Problems | None = None) -> dict:
    """A registered dataset as the content of a COCO annotation file, mended; read anew at each call.

    From the file that the metadata name as ``json_file``, or else from the registered dicts, whose image ids and
    classes it has then.

    Returns:
        dict: "images", "categories" and, if it has any, "annotations", for pycocotools.

    Raises:
        FileNotFoundError, ValueError: as `load_dataset`.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file is not None:
        found = problems if problems is not None else Problems(name, os.fspath(json_file))
        try:
            content = CocoFile.shared(json_file, found).content()
        except FileNotFoundError as error:
            raise not_on_disk(name, json_file) from error
        if problems is None:
            found.log_warnings(again=False)
            found.raise_errors()
        return content
    return _content_of_dicts(load_dataset(name, problems), name)


def _content_of_dicts(dicts: list[dict], name: str) -> dict:
    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes")
    if not classes:
        raise ValueError(
            f"dataset {name!r} has no thing_classes: set them where it is registered, "
            "MetadataCatalog.get(NAME).set(thing_classes=[...])"
        )
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id")
    ids = {v: k for k, v in contiguous.items()} if contiguous else {k: k for k in range(len(classes))}
    images: list[dict] = []
    annotations: list[dict] = []
    content = {
        "info": {},
        "images": images,
        "categories": [{"id": ids[k], "name": c} for k, c in enumerate(classes)],
    }
    for number, record in enumerate(dicts):
        image_id = record.get("image_id", number)
        keys = ("file_name", "height", "width", *(key for key in _OF_VIDEO if key in record))
        image = {"id": image_id, **{key: record[key] for key in keys}}
        images.append(image)
        for annotation in record.get("annotations", ()):
            mode = BoxMode(annotation["bbox_mode"])
            if mode == BoxMode.XYWHA_ABS:
                corners = BoxMode.convert([annotation["bbox"]], mode, BoxMode.XYXY_ABS)[0]
                box = BoxMode.convert([float(v) for v in corners], BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            else:
                box = BoxMode.convert(annotation["bbox"], mode, BoxMode.XYWH_ABS)
            keys = ("iscrowd", "area", "segmentation", "num_keypoints", "track_id")
            kept = {key: annotation[key] for key in keys if key in annotation}
            if annotation["category_id"] not in ids:
                raise ValueError(
                    f"dataset {name!r}, image {image_label(record)}: category_id {annotation['category_id']} is not "
                    f"among its {len(classes)} thing_classes"
                )
            kept |= {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": ids[annotation["category_id"]],
                "bbox": [float(v) for v in box],
            }
            if "keypoints" in annotation:
                kept["keypoints"] = _moved(annotation["keypoints"], -0.5)
            annotations.append(kept)
    if any("annotations" in record for record in dicts):
        content["annotations"] = annotations
    return content


def get_detection_dataset_dicts(
    names: str | list[str],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: list[str] | None = None,
    check_consistency: bool = True,
):
    """detectron2's function of this name, for datasets read by `load_dataset`.

    Args:
        names: registered datasets.
        filter_empty: leave out images without annotations but crowds.
        min_keypoints: leave out images with fewer visible keypoints.
        proposal_files: of precomputed proposals, one for each of the datasets; None for none. They are read without
            running what a pickle may hold.
        check_consistency: the datasets must have the same classes.

    Returns:
        list[dict]:

    Raises:
        ValueError: a dataset is wrong, or nothing is left of them.
    """
    names = [names] if isinstance(names, str) else list(names)
    files = [] if proposal_files is None else list(proposal_files)
    if files and len(files) != len(names):
        raise ValueError(
            f"there must be a file of proposals for each dataset (DATASETS.PROPOSAL_FILES_TRAIN and _TEST, "
            f"proposal_files), got {len(files)} for {len(names)}: {', '.join(names)}"
        )
    loaded = {name: load_dataset(name) for name in names}
    for name, file in zip(names, files, strict=False):
        loaded[name] = add_proposals(loaded[name], file, name)
    for name, dicts in loaded.items():
        if not dicts:
            raise ValueError(f"dataset {name!r} is empty: it has no images")
    dicts = [record for part in loaded.values() for record in part]
    if not all("annotations" in record for record in dicts):
        return dicts
    if filter_empty:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if min_keypoints > 0:
        dicts = filter_images_with_few_keypoints(dicts, min_keypoints)
    classes = MetadataCatalog.get(names[0]).get("thing_classes")
    if check_consistency and classes:
        check_metadata_consistency("thing_classes", names)
        print_instances_class_histogram(dicts, classes)
    if not dicts:
        raise ValueError(
            f"no image of {', '.join(names)} is left for training: none has "
            f"{'an annotation' if min_keypoints == 0 else f'{min_keypoints} visible keypoints'}"
        )
    return dicts
