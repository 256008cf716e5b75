"""Pictures of a dataset's images with their annotations, as they are read. Runs without detectron2."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, ImageDraw, ImageFont

from .coco_file import CocoFile
from .images import read_rgb
from .keypoint_names import skeleton_lines
from .problems import Problems

__all__ = ["draw_annotations", "draw_images", "draw_pages"]

_OPACITY = 0.4
_ENOUGH = 480  # pixels of the shorter side; smaller images are enlarged
_TOO_MUCH = 2400  # of the longer side, beyond which they are not
_FONT, _LINE = 0.021, 0.0026  # sizes as shares of the picture's geometric mean side
_PAGE, _CELL = (2, 3), (800, 540)  # columns and rows of a page; pixels for each picture
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

    Small images are enlarged by a whole number, so that lines and names can be told from what they are about. A class
    has one colour. Names are beside their boxes, and never over one another: where there is no room, one is left out.

    Args:
        picture: an image; it is left as it is.
        annotations: mended annotations of COCO's format.
        names: of the classes by category id.
        lines: pairs of keypoints to draw lines between.
    """
    width, height = picture.size
    scale = _scale_of(width, height)
    drawn = picture.convert("RGB").resize((width * scale, height * scale), Image.Resampling.LANCZOS)
    pixels = np.array(drawn)
    order = {category: number for number, category in enumerate(names)}
    colors = [_color(order[annotation["category_id"]]) for annotation in annotations]
    for annotation, color in zip(annotations, colors, strict=True):
        mask = _mask_of(annotation.get("segmentation"), height, width)
        if mask is not None:
            mask = np.kron(mask, np.ones((scale, scale), bool)) if scale > 1 else mask
            pixels[mask] = (1 - _OPACITY) * pixels[mask] + _OPACITY * np.array(color)
    drawn = Image.fromarray(pixels)
    draw = ImageDraw.Draw(drawn)
    size = (drawn.width * drawn.height) ** 0.5
    line = max(1, round(_LINE * size))
    for annotation, color in zip(annotations, colors, strict=True):
        x, y, w, h = (scale * value for value in annotation["bbox"])
        draw.rectangle([x, y, x + w, y + h], outline=color, width=line)
        points = [
            scale * value if k % 3 < 2 else value for k, value in enumerate(annotation.get("keypoints", ()))
        ]
        _draw_keypoints(draw, points, lines, color, line)
    font = ImageFont.load_default(max(10, round(_FONT * size)))
    taken: list[tuple] = []
    for annotation, color in sorted(
        zip(annotations, colors, strict=True), key=lambda item: -item[0]["bbox"][2] * item[0]["bbox"][3]
    ):
        label = names[annotation["category_id"]] + (" (crowd)" if annotation["iscrowd"] else "")
        _draw_label(
            draw, label, [scale * value for value in annotation["bbox"]], font, color, taken, drawn.size
        )
    return drawn


def _scale_of(width, height):
    wanted = -(-_ENOUGH // max(1, min(width, height)))
    return max(1, min(wanted, _TOO_MUCH // max(1, width, height)))


def _mask_of(segmentation, height, width):
    """(H, W) bool, None where there is none of this size."""
    if segmentation is None or (isinstance(segmentation, dict) and segmentation["size"] != [height, width]):
        return None
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    return mask_util.decode(segmentation).astype(bool)


def _draw_keypoints(draw: ImageDraw.ImageDraw, keypoints, lines, color, line: int):
    points = [tuple(keypoints[k : k + 3]) for k in range(0, len(keypoints), 3)]
    for a, b in lines:
        if points and points[a][2] > 0 and points[b][2] > 0:
            draw.line([*points[a][:2], *points[b][:2]], fill=(255, 255, 255), width=line)
    radius = 1.6 * line
    for x, y, visibility in points:
        if visibility > 0:
            fill = color if visibility > 1 else None  # a ring for what is hidden
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=(255, 255, 255))


def _draw_label(draw, text, box, font, color, taken, size):
    """Above the box, below it, or within it: where it meets no other label."""
    x, y, w, h = box
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = max(1, round((bottom - top) / 6))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    for place_x, place_y in (
        (x, y - height),
        (x, y + h),
        (x + w - width, y - height),
        (x, y),
        (x, y + h - height),
    ):
        rect = (
            min(max(0, place_x), max(0, size[0] - width)),
            place_y,
            min(max(0, place_x), max(0, size[0] - width)) + width,
            place_y + height,
        )
        if rect[1] < 0 or rect[3] > size[1] or any(_meet(rect, other) for other in taken):
            continue
        taken.append(rect)
        draw.rectangle(rect, fill=color)
        ink = (0, 0, 0) if sum(np.array(color) * (0.3, 0.59, 0.11)) > 110 else (255, 255, 255)
        draw.text((rect[0] + pad - left, rect[1] + pad - top), text, fill=ink, font=font)
        return


def _meet(a, b):
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_pages(pictures: Sequence[str], folder: str) -> list[str]:
    """Puts pictures on pages of six, ``page_1.jpg`` and so on; one alone needs none.

    Args:
        pictures: files.
        folder: of the pages.

    Returns:
        Paths of the pages.
    """
    pages = []
    columns, rows = _PAGE
    for start in range(0, len(pictures) if len(pictures) > 1 else 0, columns * rows):
        part = pictures[start : start + columns * rows]
        used = -(-len(part) // columns)
        page = Image.new("RGB", (columns * _CELL[0], used * _CELL[1]), "white")
        for number, path in enumerate(part):
            with Image.open(path) as picture:
                picture.thumbnail((_CELL[0] - 8, _CELL[1] - 8))
                x, y = number % columns * _CELL[0] + 4, number // columns * _CELL[1] + 4
                page.paste(picture, (x, y))
        pages.append(os.path.join(folder, f"page_{start // (columns * rows) + 1}.jpg"))
        page.save(pages[-1], quality=90)
    return pages


def _color(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.9, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
