"""Pictures of a dataset's images with their annotations, as they are read. Runs without detectron2."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw

from .coco_file import CocoFile
from .images import read_rgb
from .keypoint_names import skeleton_lines
from .problems import Problems

__all__ = ["draw_annotations", "draw_images"]

_OPACITY = 0.4
_GOLDEN = 0.618  # hues that follow one another are far apart


def draw_images(path: str, image_root: str, image_ids: Sequence, folder: str) -> list[str]:
    """Draws some images of a dataset in COCO's format; those that cannot be read are left out.

    Args:
        path: of the annotation file.
        image_root: folder that the file names of the images start from.
        image_ids: of the images.
        folder: of the pictures, made if need be; each has the id and the name of its image.

    Returns:
        Paths of the pictures.
    """
    wanted = dict.fromkeys(image_ids)
    file = CocoFile(path, Problems(os.path.basename(path), path))
    annotations: dict = {image_id: [] for image_id in wanted}
    for annotation in file.annotations():
        if annotation["image_id"] in wanted:
            annotations[annotation["image_id"]].append(annotation)
    names = {category["id"]: category["name"] for category in file.categories}
    skeleton = next(
        (c["skeleton"] for c in file.categories if c.get("keypoints") and c.get("skeleton")), None
    )
    named = skeleton_lines(skeleton, file.keypoint_names, file.path)
    places = {name: place for place, name in enumerate(file.keypoint_names)}
    lines = [(places[a], places[b]) for a, b in named]
    os.makedirs(folder, exist_ok=True)
    written = []
    for image_id, found in annotations.items():
        record = file.images.get(image_id)
        if record is None:
            continue
        try:
            picture = read_rgb(os.path.join(image_root, record["file_name"]))
        except OSError:
            continue  # it is among the problems
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        target = os.path.join(folder, f"{image_id}_{stem}.jpg")
        draw_annotations(picture, found, names, lines).save(target, quality=90)
        written.append(target)
    return written


def draw_annotations(
    picture: Image.Image, annotations: Sequence[dict], names: dict, lines: Sequence[tuple[int, int]] = ()
) -> Image.Image:
    """An RGB picture with masks, boxes, names of classes and visible keypoints.

    Args:
        picture: an image; it is left as it is.
        annotations: mended annotations of COCO's format.
        names: of the classes by category id.
        lines: pairs of keypoints to draw lines between.
    """
    pixels = np.array(picture.convert("RGB"))
    height, width = pixels.shape[:2]
    colors = [_color(number) for number in range(len(annotations))]
    for annotation, color in zip(annotations, colors, strict=True):
        segmentation = annotation.get("segmentation")
        if segmentation is None or (
            isinstance(segmentation, dict) and segmentation["size"] != [height, width]
        ):
            continue
        if isinstance(segmentation, list):
            segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        mask = mask_util.decode(segmentation).astype(bool)
        pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(color)
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    radius = max(2, round(min(height, width) / 200))
    for annotation, color in zip(annotations, colors, strict=True):
        x, y, w, h = annotation["bbox"]
        draw.rectangle([x, y, x + w, y + h], outline=color, width=max(1, radius // 2))
        label = names[annotation["category_id"]] + (" (crowd)" if annotation["iscrowd"] else "")
        draw.text((x + 2, y + 1), label, fill=color, stroke_width=1, stroke_fill=(0, 0, 0))
        _draw_keypoints(draw, annotation.get("keypoints", ()), lines, color, radius)
    return drawn


def _draw_keypoints(draw: ImageDraw.ImageDraw, keypoints, lines, color, radius: int):
    points = [tuple(keypoints[k : k + 3]) for k in range(0, len(keypoints), 3)]
    for a, b in lines:
        if points and points[a][2] > 0 and points[b][2] > 0:
            draw.line([*points[a][:2], *points[b][:2]], fill=color, width=max(1, radius // 2))
    for x, y, visibility in points:
        if visibility > 0:
            fill = color if visibility > 1 else None  # a ring for what is hidden
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=(255, 255, 255))


def _color(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.9, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
