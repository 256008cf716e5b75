"""Small pictures of single errors, cut out of their images."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask as mask_util

from ..data.images import read_rgb

__all__ = ["TRUTH_COLOR", "FOUND_COLOR", "error_picture", "jpeg_data_uri", "read_picture"]

TRUTH_COLOR, FOUND_COLOR = (34, 197, 94), (249, 115, 22)  # green, orange; RGB
_SIZE = (300, 220)  # width, height of a picture
_CONTEXT = 1.5  # times the object's sides that are shown to either side of it, at most


def read_picture(image: dict, image_root: str | os.PathLike) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB of an image record of COCO's format; None where it cannot be read."""
    try:
        return np.array(read_rgb(os.path.join(image_root, image["file_name"])))
    except (OSError, ValueError):
        return None


def error_picture(image: np.ndarray, truth: Sequence[dict], found: Sequence[dict]) -> np.ndarray:
    """The part of an image that some objects and detections are in, with their boxes and outlines: objects green and
    solid, detections orange and dashed.

    Args:
        image: (H, W, 3) uint8, RGB.
        truth: annotations of COCO's format, "bbox" in pixels.
        found: records of COCO's results format.

    Returns:
        (220, 300, 3) uint8, RGB.
    """
    x0, y0, x1, y1 = _window([item["bbox"] for item in (*truth, *found)], image.shape)
    scale = _SIZE[0] / (x1 - x0)
    # Beyond the image there is gray.
    source = np.array([[scale, 0, -x0 * scale], [0, scale, -y0 * scale]])
    flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = cv2.warpAffine(image, source, _SIZE, flags=flags, borderValue=(229, 231, 235))
    for item, color, dashed in [(t, TRUTH_COLOR, False) for t in truth] + [
        (f, FOUND_COLOR, True) for f in found
    ]:
        for outline in _outlines(item.get("segmentation"), image.shape[:2]):
            points = np.rint((outline + 0.5 - (x0, y0)) * scale).astype(np.int32)
            cv2.polylines(picture, [points], True, color, 1, cv2.LINE_AA)
        x, y, w, h = item["bbox"]
        corners = np.rint((np.array([[x, y], [x + w, y + h]]) - (x0, y0)) * scale).astype(int)
        _box(picture, corners, color, dashed)
    return picture


def jpeg_data_uri(picture: np.ndarray) -> str:
    """An RGB picture as a URI for ``<img src>``."""
    data = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _window(boxes, shape):
    """(x0, y0, x1, y1) around boxes (x, y, w, h) with some of what is around them, in a picture's proportions."""
    boxes = np.array(boxes, dtype=np.float64)
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    middle, sides = (low + high) / 2, np.maximum(high - low, 1)
    ratio = _SIZE[0] / _SIZE[1]
    width = max(sides[0], sides[1] * ratio)
    whole = max(shape[1], shape[0] * ratio)
    # Small objects need more of their surroundings to be recognised.
    width = min(max(1.5 * width, min((1 + 2 * _CONTEXT) * width, 96)), max(whole, width * 1.05))
    half = np.array([width, width / ratio]) / 2
    # Within the image where it is large enough.
    size = np.array([shape[1], shape[0]], dtype=np.float64)
    middle = np.where(2 * half < size, np.clip(middle, half, np.maximum(size - half, half)), size / 2)
    return (*(middle - half), *(middle + half))


def _outlines(segmentation, size):
    if not segmentation:
        return []
    height, width = size
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        return [np.array(polygon, dtype=np.float64).reshape(-1, 2) - 0.5 for polygon in polygons]
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    mask = np.ascontiguousarray(mask_util.decode(segmentation))
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0].astype(np.float64) for contour in contours]


def _box(picture, corners, color, dashed):
    (x0, y0), (x1, y1) = corners
    if not dashed:
        cv2.rectangle(picture, (int(x0), int(y0)), (int(x1), int(y1)), color, 2)
        return
    for (ax, ay), (bx, by) in (
        ((x0, y0), (x1, y0)),
        ((x1, y0), (x1, y1)),
        ((x1, y1), (x0, y1)),
        ((x0, y1), (x0, y0)),
    ):
        length = max(abs(bx - ax), abs(by - ay))
        for start in range(0, int(length), 10):
            ends = [
                (int(ax + (bx - ax) * at / length), int(ay + (by - ay) * at / length))
                for at in (start, min(start + 6, length))
            ]
            cv2.line(picture, *ends, color, 2)
