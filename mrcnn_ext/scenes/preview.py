"""Pictures of annotated scenes, for looking at."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util

from .spec import CATEGORIES, KEYPOINT_NAMES, SKELETON

_LINES = [(KEYPOINT_NAMES.index(a), KEYPOINT_NAMES.index(b)) for a, b in SKELETON]
# Brighter than Cityscapes' own colours, which are nearly black for vehicles.
COLORS = (
    (255, 70, 70),
    (255, 160, 40),
    (70, 130, 255),
    (40, 200, 200),
    (180, 90, 255),
    (90, 220, 90),
    (255, 90, 220),
    (240, 230, 60),
)


def draw_annotations(image: np.ndarray, annotations: list[dict], scale: int = 1) -> np.ndarray:
    """
    Args:
        image: (H, W, 3) uint8, RGB.
        annotations: COCO records with category ids from 1 to 8.
        scale: enlargement.

    Returns:
        (H * scale, W * scale, 3) uint8: the image with masks, boxes, names and skeletons. Seen keypoints are
        filled, hidden ones open.
    """
    h, w = image.shape[:2]
    out = cv2.resize(image, (w * scale, h * scale), interpolation=cv2.INTER_CUBIC)
    for annotation in annotations:
        color = COLORS[annotation["category_id"] - 1]
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            mask = mask_util.decode(mask_util.merge(mask_util.frPyObjects(segmentation, h, w)))
        else:
            mask = mask_util.decode(segmentation)
        mask = cv2.resize(mask, (w * scale, h * scale), interpolation=cv2.INTER_NEAREST)
        out[mask > 0] = (0.6 * out[mask > 0] + 0.4 * np.array(color)).astype(np.uint8)
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(out, contours, -1, color, 1)
    for annotation in annotations:
        color = COLORS[annotation["category_id"] - 1]
        x, y, bw, bh = (int(v * scale) for v in annotation["bbox"])
        cv2.rectangle(out, (x, y), (x + bw - 1, y + bh - 1), color, 1)
        name = CATEGORIES[annotation["category_id"] - 1][0] + (" crowd" if annotation["iscrowd"] else "")
        spot = (x + 1, max(y - 3, 9))
        cv2.putText(out, name, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(out, name, spot, cv2.FONT_HERSHEY_SIMPLEX, 0.35, color, 1, cv2.LINE_AA)
        keypoints = np.array(annotation["keypoints"], dtype=np.float64).reshape(-1, 3)
        points = [(int((px + 0.5) * scale), int((py + 0.5) * scale)) for px, py, _ in keypoints]
        for a, b in _LINES:
            if keypoints[a, 2] and keypoints[b, 2]:
                cv2.line(out, points[a], points[b], (255, 255, 255), 1, cv2.LINE_AA)
        for point, (_, _, v), name in zip(points, keypoints, KEYPOINT_NAMES, strict=True):
            if v:
                side = (60, 255, 60) if name.startswith("left") else (255, 60, 60)
                cv2.circle(out, point, 2, side, -1 if v == 2 else 1, cv2.LINE_AA)
    return out


def contact_sheet(pictures: list[np.ndarray], columns: int) -> np.ndarray:
    """A grid of pictures of one size, left to right, top to bottom; the last row is filled with white."""
    h, w = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (h + 4) - 4, columns * (w + 4) - 4, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        y, x = divmod(k, columns)
        sheet[y * (h + 4) : y * (h + 4) + h, x * (w + 4) : x * (w + 4) + w] = picture
    return sheet


def dataset_sheet(root, count: int) -> np.ndarray:
    """
    The first images of a dataset that `write_dataset` or `write_clips` wrote, with their annotations, as one picture;
    a row for each clip.
    """
    root, pictures = Path(root), []
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in content["images"][: count - len(pictures)]:
            annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            pixels = cv2.imread(str(root / image["file_name"]))[:, :, ::-1]
            pictures.append(draw_annotations(pixels, annotations, 2 if image["width"] <= 400 else 1))
    columns = (
        content["videos"][0]["length"] if content.get("videos") else 4 if pictures[0].shape[1] < 800 else 2
    )
    return contact_sheet(pictures, columns)
