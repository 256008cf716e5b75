"""Writes what a reader finds as a COCO annotation file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...files import replacing
from ..annotations import box_of_segmentation, clean_annotation
from ..images import image_size
from ..problems import Unusable

__all__ = ["Found", "FoundImage", "FoundObject", "image_size", "write_coco", "write_json"]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass
class FoundObject:
    """An object of an image.

    Attributes:
        category: its class.
        bbox: [x, y, width, height] in pixels; None to take it from the segmentation.
        segmentation: polygons or RLE; None if there is none.
        keypoints: x, y, visibility for each, in COCO's pixel indices; None if there are none.
        extra: further keys of the annotation.
    """

    category: str
    bbox: list[float] | None = None
    segmentation: list | dict | None = None
    keypoints: list[float] | None = None
    extra: dict = field(default_factory=dict)


@dataclass
class FoundImage:
    """An image file, its size in pixels, and its objects; ``source`` is the file they come from, for messages."""

    path: str
    height: int
    width: int
    objects: list[FoundObject]
    source: str


@dataclass
class Found:
    """What a reader has found.

    Attributes:
        images: one at a time.
        categories: names of the classes in order; None takes them as they come, sorted.
        keypoints: names of the keypoints.
        description: of the dataset, for `read_description`: what COCO's format has no place for.
    """

    images: Iterable[FoundImage]
    categories: list[str] | None = None
    keypoints: list[str] = field(default_factory=list)
    description: dict = field(default_factory=dict)


def write_coco(found: Found, output: str, image_root: str) -> dict:
    """Writes a COCO annotation file; it is there when it is whole.

    Args:
        found: by a reader.
        output: the new file.
        image_root: folder that the file names start from.

    Returns:
        {"images", "annotations", "categories"}: how many of each.

    Raises:
        ValueError: an object cannot be used, or there are none; the message names the file it comes from.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    for number, image in enumerate(found.images, 1):
        name = os.path.relpath(image.path, image_root).replace(os.sep, "/")
        images.append({"id": number, "file_name": name, "height": image.height, "width": image.width})
        for one in image.objects:
            annotations.append(
                {**_annotation(one, image, found), "id": len(annotations) + 1, "image_id": number}
            )
    if not images:
        raise ValueError(f"no images were found for {output}")
    names = found.categories or sorted({annotation["category_id"] for annotation in annotations})
    if not names:
        raise ValueError(f"{len(images)} images were found for {output}, and no object in any of them")
    ids = {name: number for number, name in enumerate(names, 1)}
    for annotation in annotations:
        annotation["category_id"] = ids[annotation["category_id"]]
    keypoints = {"keypoints": found.keypoints} if found.keypoints else {}
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, **keypoints} for name, number in ids.items()],
    }
    write_json(content, output)
    return {"images": len(images), "annotations": len(annotations), "categories": len(names)}


def write_json(content: dict, output: str) -> None:
    """Writes the content of an annotation file, which is there when it is whole."""
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    with replacing(output, "w", by_several=True) as file:  # those of a training convert at once
        json.dump(content, file, default=lambda value: value.decode("ascii"))


def _annotation(one: FoundObject, image: FoundImage, found: Found) -> dict:
    if found.categories is not None and one.category not in found.categories:
        raise ValueError(
            f"{image.source}: {one.category!r} is not among the classes {', '.join(found.categories)}"
        )
    raw = {"category_id": one.category, "iscrowd": 0, **one.extra}
    for key in ("bbox", "segmentation", "keypoints"):
        if getattr(one, key) is not None:
            raw[key] = getattr(one, key)
    if "bbox" not in raw and one.segmentation:
        raw["bbox"] = box_of_segmentation(one.segmentation, image.height, image.width)
    try:
        clean = clean_annotation(raw, image.height, image.width, _ignore, len(found.keypoints) or None)
        if clean.get("undrawable"):
            raise Unusable(f"nothing of its segmentation can be drawn: {one.segmentation!r:.60}")
    except Unusable as problem:
        raise ValueError(f"{image.source}: an object of class {one.category!r}: {problem}") from None
    return clean


def _ignore(kind: str, text: str) -> None:
    """What is mended needs no telling: the reader made it."""
