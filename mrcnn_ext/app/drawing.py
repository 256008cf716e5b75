"""What the app draws: detections as shapes for the browser and as pictures, what the heads gave, and RoI layers."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from ..evaluation import instances_to_coco_json
from ..inference.detections import detections_of
from ..inference.drawing import Painter, Style, color_of
from ..ops.roi_sampling import AxisSamples, RoISamples

__all__ = [
    "Names",
    "Shown",
    "annotated",
    "colored",
    "data_uri",
    "enlarged",
    "heat_over",
    "keypoint_heat",
    "mask_heat",
    "roi_picture",
    "shapes",
]

_HALF = 0.5  # detectron2 counts keypoints from the centre of a pixel, pictures from its corner
_SENT = 1600  # pixels of the longer side of an image for a screen
_DIM = 0.45  # brightness of an image under heat
_POINTS = 1.0  # outlines are simplified by so many pixels of a mask drawn at 2 x
_FAINT, _BRIGHT = (235, 235, 235), (255, 255, 255)


@dataclass(frozen=True)
class Shown:
    """What is drawn of detections.

    Attributes:
        boxes, masks, keypoints, labels: whether these are.
        keypoint_score: keypoints below are not drawn.
    """

    boxes: bool = True
    masks: bool = True
    keypoints: bool = True
    labels: bool = True
    keypoint_score: float = 0.05


@dataclass(frozen=True)
class Names:
    """What a model's objects are called.

    Attributes:
        classes: names of the classes.
        keypoints: names of the K keypoints; numbers where they are too few.
        lines: pairs of keypoints, by their places, that a line joins.
    """

    classes: Sequence[str]
    keypoints: Sequence[str] = ()
    lines: Sequence[tuple[int, int]] = ()


def shapes(pixels: np.ndarray, instances: Instances, names: Names, shown: Shown | None = None) -> dict:
    """An image and its detections as plain values, for the browser to draw.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        instances: of the image, on the CPU; ``pred_masks`` one by one (H, W) bool, and ``number`` for ids if there.
        names: of classes and keypoints.
        shown: what is drawn; default everything.

    Returns:
        {"width", "height", "image": a data URI, "objects": [{"id", "label", "score", "color", "box", "detail", "mask":
        the path of an SVG, "points": [[x, y, score, name] or None], "lines"}], "boxes", "labels": whether to draw
        them}.
    """
    shown = shown or Shown()
    height, width = pixels.shape[:2]
    objects = []
    for i in range(len(instances)):
        box = instances.pred_boxes.tensor[i].tolist()
        label = int(instances.pred_classes[i])
        one = {
            "id": int(instances.number[i]) if instances.has("number") else i,
            "label": names.classes[label],
            "score": round(float(instances.scores[i]), 4),
            "color": f"rgb{color_of(label)}",
            "box": [round(side, 2) for side in box],
            "detail": f"{box[2] - box[0]:.0f} x {box[3] - box[1]:.0f} pixels",
        }
        if shown.masks and instances.has("pred_masks"):
            one["mask"] = _path(np.asarray(instances.pred_masks[i]), box)
        if shown.keypoints and instances.has("pred_keypoints"):
            points = instances.pred_keypoints[i].tolist()
            one["points"] = [
                [
                    round(x + _HALF, 2),
                    round(y + _HALF, 2),
                    round(score, 3),
                    names.keypoints[k] if k < len(names.keypoints) else f"keypoint {k}",
                ]
                if score >= shown.keypoint_score and math.isfinite(x + y + score)
                else None
                for k, (x, y, score) in enumerate(points)
            ]
            one["lines"] = [list(line) for line in names.lines]
        objects.append(one)
    return {
        "width": width,
        "height": height,
        "image": data_uri(pixels),
        "objects": objects,
        "boxes": shown.boxes,
        "labels": shown.labels,
    }


def _path(mask: np.ndarray, box) -> str:
    """Outlines of a mask, holes included, as the path of an SVG; drawn at twice the size, so that a curve through the
    pixels' corners does not lose half a pixel to each side."""
    height, width = mask.shape
    x0, y0 = (max(0, int(side) - 2) for side in box[:2])
    x1, y1 = min(width, int(box[2]) + 3), min(height, int(box[3]) + 3)
    part = mask[y0:y1, x0:x1].astype(np.uint8)
    if part.size == 0:
        return ""
    large = cv2.copyMakeBorder(part.repeat(2, 0).repeat(2, 1), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    outlines, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for outline in outlines:
        outline = cv2.approxPolyDP(outline, _POINTS, True)[:, 0]
        if len(outline) >= 3:
            # Pixel k of the enlarged mask, after its border, covers [(k - 1) / 2, k / 2) of the image.
            points = (outline - 0.5) / 2 + (x0, y0)
            parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(parts)


def data_uri(pixels: np.ndarray, lossless: bool = False) -> str:
    """RGB pixels as a file that a page holds itself, no larger than a screen needs: a JPEG, or a PNG."""
    bgr = np.ascontiguousarray(_for_screen(pixels)[:, :, ::-1])
    kind, options = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, 92])
    _, data = cv2.imencode(f".{kind}", bgr, options)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _for_screen(image: np.ndarray) -> np.ndarray:
    """An image, smaller if a screen does not show as much."""
    scale = _SENT / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def annotated(
    pixels: np.ndarray, instances: Instances, names: Names, shown: Shown | None = None
) -> np.ndarray:
    """A picture with the detections, to be kept; arguments as of `shapes`. RGB, small images enlarged."""
    shown = shown or Shown()
    style = Style(
        boxes=shown.boxes,
        masks=shown.masks,
        keypoints=shown.keypoints,
        labels=shown.labels,
        keypoint_score=shown.keypoint_score,
    )
    found = detections_of(instances_to_coco_json(instances, 0), dict(enumerate(names.classes)))
    return Painter(style, names.keypoints, names.lines).draw(pixels, found)


def mask_heat(instances: Instances, size: tuple[int, int]) -> np.ndarray:
    """What the mask head gave, in the image: (H, W) float32, the greatest probability of any mask."""
    heat = np.zeros(size, np.float32)
    for soft, box in zip(instances.pred_masks.masks[:, 0], instances.pred_boxes.tensor, strict=True):
        _put(heat, soft.float().numpy(), box.tolist())
    return heat


def keypoint_heat(
    instances: Instances, size: tuple[int, int], box_scale: float = 1.0, keypoint: int | None = None
) -> np.ndarray:
    """What the keypoint head gave, in the image: (H, W) float32, the softmax of each heatmap over its highest value.

    Args:
        size: height and width of the image.
        box_scale: sides of the head's RoIs over those of the boxes.
        keypoint: only this one; None for the greatest of all.
    """
    heat = np.zeros(size, np.float32)
    boxes = instances.pred_boxes.tensor
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * box_scale
    rois = torch.cat([centres - sides / 2, centres + sides / 2], dim=1)
    for logits, roi in zip(instances.pred_keypoint_heatmaps, rois, strict=True):
        maps = likely(logits if keypoint is None else logits[keypoint, None])
        _put(heat, maps.max(0).values.numpy(), roi.tolist())
    return heat


def likely(logits: Tensor) -> Tensor:
    """Heatmap logits (K, S_h, S_w) as probabilities over the place, over the highest of each."""
    flat = logits.float().flatten(1)
    return (flat - flat.max(1, keepdim=True).values).exp().view_as(logits)


def _put(heat: np.ndarray, values: np.ndarray, box) -> None:
    """The greater of ``heat`` and (m_h, m_w) values stretched over a box, in place."""
    height, width = heat.shape
    x0, y0, x1, y1 = box
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if left >= right or top >= bottom:
        return
    step_x, step_y = (x1 - x0) / values.shape[1], (y1 - y0) / values.shape[0]
    # From centres of values to centres of pixels.
    move = np.array(
        [[step_x, 0, x0 + step_x / 2 - 0.5 - left], [0, step_y, y0 + step_y / 2 - 0.5 - top]], np.float64
    )
    part = cv2.warpAffine(
        np.ascontiguousarray(values, np.float32),
        *(move, (right - left, bottom - top)),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    target = heat[top:bottom, left:right]
    np.maximum(target, part, out=target)


def heat_over(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image, dimmed, under (H, W) heat in [0, 1]; no larger than a screen needs."""
    pixels, heat = _for_screen(pixels), _for_screen(heat)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[:, :, None] * _DIM
    share = np.clip(heat, 0, 1)[:, :, None] ** 0.5
    mixed = grey * (1 - 0.85 * share) + colored(heat).astype(np.float32) * (0.85 * share)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def colored(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1], or (H, W, 3), as (H, W, 3) uint8 RGB: dark blue is 0 and yellow is 1."""
    levels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if levels.ndim == 3:
        return levels
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_PLASMA)[:, :, ::-1])


def enlarged(pixels: np.ndarray, side: int = 420) -> np.ndarray:
    """Each pixel a square, so that the longer side has about so many pixels."""
    scale = max(1, side // max(pixels.shape[:2]))
    return pixels.repeat(scale, 0).repeat(scale, 1)


def roi_picture(
    pixels: np.ndarray,
    model_size: tuple[int, int],
    box: Sequence[float],
    seen: RoISamples,
    stride: float,
    color: tuple[int, int, int],
    window: Sequence[float],
    side: int = 640,
) -> np.ndarray:
    """Part of the image with the feature map's cells, a box, and where a RoI layer reads for it.

    Cell i of a feature map covers the pixels from i to i + 1 strides of the model's image, and is drawn there. Thin
    grey lines are the cells, white the box, coloured lines the bins and dots the samples; bins without samples, which
    are integrated, are tinted.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        model_size: height and width of the image as the model saw it.
        box: x0, y0, x1, y1 in pixels of the model's image.
        seen: the layer's samples.
        stride: of the feature map.
        color: RGB of the layer.
        window: x0, y0, x1, y1, the part that is drawn, in pixels of the model's image; may go beyond it.
        side: pixels of the longer side of the result.
    """
    x0, y0, x1, y1 = window
    zoom = side / max(x1 - x0, y1 - y0)
    size = (max(1, round((x1 - x0) * zoom)), max(1, round((y1 - y0) * zoom)))
    scale_x, scale_y = model_size[1] / pixels.shape[1] * zoom, model_size[0] / pixels.shape[0] * zoom
    move = np.array(
        [[scale_x, 0, scale_x / 2 - 0.5 - x0 * zoom], [0, scale_y, scale_y / 2 - 0.5 - y0 * zoom]]
    )
    picture = cv2.warpAffine(pixels, move, size, flags=cv2.INTER_LINEAR, borderValue=(60, 60, 60))
    picture = np.rint(picture * 0.8).astype(np.uint8)

    def place(x, y):
        return (x - x0) * zoom, (y - y0) * zoom

    _draw_cells(picture, model_size, stride, place)
    edges_x, edges_y = ((axis.edges.numpy() + _HALF) * stride for axis in (seen.x, seen.y))
    if seen.x.points.shape[1] == 0:
        tint = picture.copy()
        _rectangle(tint, place(edges_x[0], edges_y[0]), place(edges_x[-1], edges_y[-1]), color, -1)
        cv2.addWeighted(tint, 0.35, picture, 0.65, 0, dst=picture)
    for x in edges_x:
        _line(picture, place(x, edges_y[0]), place(x, edges_y[-1]), color, 1)
    for y in edges_y:
        _line(picture, place(edges_x[0], y), place(edges_x[-1], y), color, 1)
    _rectangle(picture, place(*box[:2]), place(*box[2:]), _BRIGHT, 2)
    xs, ys = (_places(axis, stride) for axis in (seen.x, seen.y))
    gap = stride * zoom * min(_gap(seen.x), _gap(seen.y))
    radius = min(5.0, max(1.0, gap / 6))
    for y in ys:
        for x in xs:
            _dot(picture, place(x, y), radius, color)
    return picture


def _places(axis: AxisSamples, stride: float) -> list[float]:
    """Samples in pixels; neighbouring bins of whole cells may share some."""
    return [(point + _HALF) * stride for point in sorted(set(axis.points.flatten().tolist()))]


def _gap(axis: AxisSamples) -> float:
    points = sorted(set(axis.points.flatten().tolist()))
    return min((b - a for a, b in zip(points, points[1:], strict=False)), default=1.0)


def _draw_cells(picture, model_size, stride, place):
    lined = picture.copy()
    height, width = model_size
    for x in np.arange(0, width + stride / 2, stride):
        _line(lined, place(x, 0), place(x, height), _FAINT, 1)
    for y in np.arange(0, height + stride / 2, stride):
        _line(lined, place(0, y), place(width, y), _FAINT, 1)
    cv2.addWeighted(lined, 0.3, picture, 0.7, 0, dst=picture)


_SHIFT = 4  # bits of a pixel's fractions in OpenCV's coordinates


def _fixed(point) -> list[int]:
    limit = 2**14  # OpenCV's lines end where 32 bits do
    return [round(float(np.clip(side - 0.5, -limit, limit)) * 2**_SHIFT) for side in point]


def _line(picture, start, end, color, width):
    cv2.line(picture, _fixed(start), _fixed(end), color, width, lineType=cv2.LINE_AA, shift=_SHIFT)


def _rectangle(picture, start, end, color, width):
    cv2.rectangle(picture, _fixed(start), _fixed(end), color, width, lineType=cv2.LINE_AA, shift=_SHIFT)


def _dot(picture, centre, radius, color):
    for size, ink in ((1.4 * radius, (20, 20, 20)), (radius, color)):
        cv2.circle(
            picture, _fixed(centre), round(size * 2**_SHIFT), ink, -1, lineType=cv2.LINE_AA, shift=_SHIFT
        )
