"""A picture of an image with its detections."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...data.keypoint_names import mirrored_pairs
from ..detections import Detection
from .labels import Placer
from .palette import color_of, ink_on, lighter
from .shapes import draw_box, draw_dot, draw_line, draw_mask

__all__ = ["Painter", "Style"]

_ENOUGH = 480  # pixels of the shorter side; smaller images are enlarged
_TOO_MUCH = 2400  # of the longer side, beyond which they are not
_FONT, _LINE = 0.021, 0.0026  # sizes as shares of the picture's geometric mean side
_LEFT, _RIGHT, _CENTRE = (90, 220, 255), (255, 190, 70), (255, 255, 255)


_MAX_SCALE = 16


@dataclass(frozen=True)
class Style:
    """How detections are drawn.

    Attributes:
        color_by: what has a colour of its own: "class", "instance" (within one picture), or "auto": the track in a
            video, and else the class.
        scale: whole times by which the picture is enlarged; 0 enlarges small images to 480 pixels or more.
        boxes, masks, keypoints, labels: what is drawn.
        keypoint_score: keypoints below are not drawn, and those below three times of it as rings.
    """

    color_by: Literal["auto", "class", "instance"] = "auto"
    scale: int = 0
    boxes: bool = True
    masks: bool = True
    keypoints: bool = True
    labels: bool = True
    keypoint_score: float = 0.05

    def __post_init__(self):
        if not 0 <= self.scale <= _MAX_SCALE:
            raise ValueError(
                f"scale of pictures must be from 1 to {_MAX_SCALE}, or 0 for the default, got {self.scale}"
            )


class Painter:
    """Draws the images of one source; frames of a video in their order, so that labels keep their places.

    Args:
        style: how.
        keypoint_names: of the model's keypoints; names of left and right ones give their colours.
        limbs: pairs of keypoint indices that are joined by lines.
    """

    def __init__(
        self,
        style: Style | None = None,
        keypoint_names: Sequence[str] = (),
        limbs: Sequence[tuple[int, int]] = (),
    ):
        self.style = style or Style()
        self._limbs = [tuple(limb) for limb in limbs]
        places = {name: place for place, name in enumerate(keypoint_names)}
        self._sides = {}
        for left, right in mirrored_pairs(list(keypoint_names)):
            self._sides.update({places[left]: _LEFT, places[right]: _RIGHT})
        self._placer = Placer()

    def draw(self, image: np.ndarray, detections: Sequence[Detection]) -> np.ndarray:
        """
        Args:
            image: (H, W, 3) uint8, RGB; it is left as it is.
            detections: of the image.

        Returns:
            (scale H, scale W, 3) uint8, RGB.
        """
        scale = self.style.scale or _fitting_scale(*image.shape[:2])
        picture = _enlarged(image, scale)
        mean = math.sqrt(picture.shape[0] * picture.shape[1])
        line = max(1.0, _LINE * mean)
        # Small objects on top; the same order for equal areas.
        order = sorted(range(len(detections)), key=lambda i: (-detections[i].area, i))
        colors = [self._color(i, one) for i, one in enumerate(detections)]
        for i in order:
            one = detections[i]
            if self.style.masks and one.mask is not None:
                draw_mask(picture, one.mask, one.corner, scale, colors[i], line)
        for i in order:
            one = detections[i]
            if self.style.boxes:
                with_mask = self.style.masks and one.mask is not None
                draw_box(picture, one.box * scale, colors[i], line * (0.5 if with_mask else 1))
            if self.style.keypoints and one.keypoints is not None:
                self._draw_skeleton(picture, one, scale, colors[i], line)
        if self.style.labels and detections:
            picture = self._draw_labels(picture, detections, colors, scale, max(11, round(_FONT * mean)))
        return picture

    def _color(self, number, one):
        if self.style.color_by == "instance":
            return color_of(number)
        if self.style.color_by == "auto" and one.track is not None:
            return color_of(one.track)
        return color_of(one.category)

    def _draw_skeleton(self, picture, one, scale, color, line):
        points, scores = one.keypoints[:, :2] * scale, one.keypoints[:, 2]
        seen = scores >= self.style.keypoint_score
        side = math.sqrt(max(1.0, (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]))) * scale
        # Of a small object thinner, so that it can be seen under it.
        width = max(1.0, min(1.3 * line, side / 45))
        radius = min(2.2 * line, side / 30)
        for a, b in self._limbs:
            if seen[a] and seen[b]:
                draw_line(picture, points[a], points[b], lighter(color, 0.35), width)
        for place, score, number in zip(points, scores, range(len(points)), strict=True):
            if seen[number] and radius >= 1:
                sure = score >= 3 * self.style.keypoint_score
                draw_dot(picture, place, radius, self._sides.get(number, _CENTRE), sure)

    def _draw_labels(self, picture, detections, colors, scale, size):
        order = sorted(range(len(detections)), key=lambda i: -detections[i].score)
        font = _font(size)
        texts = [_text(detections[i]) for i in order]
        pad_x, pad_y = max(2, round(0.3 * size)), max(1, round(0.15 * size))
        ascent, descent = font.getmetrics()
        sizes = [(font.getlength(text) + 2 * pad_x, ascent + descent + 2 * pad_y) for text in texts]
        boxes = [detections[i].box * scale for i in order]
        keys = [detections[i].track for i in order]
        gap = max(1.0, 0.15 * size)
        places = self._placer.place(boxes, sizes, _covered(picture, detections, scale), gap, keys)
        drawn = Image.fromarray(picture)
        draw = ImageDraw.Draw(drawn)
        for i, place in zip(order, places, strict=True):
            if place is not None and place.needs_line:
                start, end = _line_between(place.rect, detections[i].box * scale)
                draw.line([*start, *end], fill=colors[i], width=max(1, round(size / 10)))
        for i, text, place in zip(order, texts, places, strict=True):
            if place is not None:
                radius = round(0.2 * size)
                draw.rounded_rectangle(place.rect, radius, fill=colors[i], outline=(20, 20, 20), width=1)
                corner = (place.rect[0] + pad_x, place.rect[1] + pad_y)
                draw.text(corner, text, fill=ink_on(colors[i]), font=font)
        return np.array(drawn)


def _fitting_scale(height: int, width: int) -> int:
    wanted = math.ceil(_ENOUGH / min(height, width))
    return max(1, min(wanted, _TOO_MUCH // max(height, width)))


def _enlarged(image, scale):
    if scale == 1:
        return np.ascontiguousarray(image).copy()
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def _text(one: Detection) -> str:
    track = f" #{one.track}" if one.track is not None else ""
    return f"{one.name}{track} {one.score:.2f}"


def _covered(picture, detections, scale) -> np.ndarray:
    """(H, W) bool: where objects are, their masks or else their boxes."""
    covered = np.zeros(picture.shape[:2], bool)
    for one in detections:
        if one.mask is not None:
            x, y = one.corner
            part = covered[y * scale : (y + one.mask.shape[0]) * scale, x * scale :]
            large = one.mask.repeat(scale, 0).repeat(scale, 1)
            part[: large.shape[0], : large.shape[1]] |= large[: part.shape[0], : part.shape[1]]
        else:
            x0, y0, x1, y1 = (max(0, round(side * scale)) for side in one.box)
            covered[y0:y1, x0:x1] = True
    return covered


def _line_between(rect, box):
    """The nearest points of a label and of its object's box."""
    ends = []
    for low, high in ((0, 2), (1, 3)):
        near = min(max((rect[low] + rect[high]) / 2, box[low]), box[high])
        ends.append((min(max(near, rect[low]), rect[high]), near))
    return (ends[0][0], ends[1][0]), (ends[0][1], ends[1][1])


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold, which matplotlib brings along and which has most of the world's letters."""
    path = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")
    return ImageFont.truetype(path, size)
