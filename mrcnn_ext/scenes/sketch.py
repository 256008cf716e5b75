"""Drawing one actor: shapes in world coordinates, sorted by depth, drawn enlarged and averaged down."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import NEAR, Camera, Frame, Light

_SHIFT = 3  # fractional bits of the coordinates handed to OpenCV
_CIRCLE = np.stack(
    [
        np.cos(np.linspace(0, 2 * np.pi, 16, endpoint=False)),
        np.sin(np.linspace(0, 2 * np.pi, 16, endpoint=False)),
    ],
    axis=1,
)
_STUFF_CODE = 100  # owner codes from here on are Cityscapes label ids of street furniture


@dataclass
class Sprite:
    """
    A drawn actor, cropped to the part of it that lies in the image.

    Attributes:
        x, y: the crop's corner in the image.
        color: (h, w, 3) float32, 0 to 255, already multiplied by `alpha`.
        alpha: (h, w) float32, 0 to 1.
        owner: (h, w) uint8, 0 for none, else the instance's slot (1, 2, ...) or 100 + a label id.
        parts: (h * factor, w * factor) uint8, the part drawn on top, 0 for none.
        factor: enlargement of `parts`.
        coverage: slot to its area in pixels before anything else hides it (in the image).
    """

    x: int
    y: int
    color: np.ndarray
    alpha: np.ndarray
    owner: np.ndarray
    parts: np.ndarray
    factor: int
    coverage: dict[int, float]

    def part_at(self, point, radius: float) -> np.ndarray:
        """The parts drawn within `radius` pixels of an image point."""
        cx, cy = (point[0] - self.x) * self.factor, (point[1] - self.y) * self.factor
        r = max(1.0, radius * self.factor)
        y0, y1 = int(max(cy - r, 0)), int(max(cy + r, 0)) + 1
        x0, x1 = int(max(cx - r, 0)), int(max(cx + r, 0)) + 1
        return np.unique(self.parts[y0:y1, x0:x1])


class Sketch:
    """
    Collects shapes and draws them. Shapes of one `at(depth)` call keep their order; nearer groups cover
    farther ones.
    """

    def __init__(self, camera: Camera, light: Light):
        self.camera = camera
        self.light = light
        self._shapes: list[tuple] = []
        self._key = 0.0
        self._owners = [0]
        sun = light.sun
        self._lit = np.array([sun[0], -sun[2]]) / max(1e-6, np.hypot(sun[0], sun[2]))
        self._tones = 0.10 + 0.35 * light.direct

    def part(self, slot: int = 0, stuff: int | None = None) -> int:
        """A new part, of the instance in `slot` (1, 2, ...) or of street furniture with label id `stuff`."""
        self._owners.append(slot if stuff is None else _STUFF_CODE + stuff)
        return len(self._owners) - 1

    def at(self, depth: float) -> None:
        """The shapes that follow lie at this depth (metres)."""
        self._key = -float(depth)

    def polygon(self, points, color, part: int) -> None:
        """A flat filled polygon of world points (N, 3)."""
        self._fill(self.camera.project(points), color, part)

    def hull(self, points, color, part: int) -> None:
        """The convex hull of world points (N, 3), in one colour."""
        pixels = self.camera.project(points).astype(np.float32)
        self._fill(cv2.convexHull(pixels)[:, 0].astype(np.float64), color, part)

    def area(self, points, slot: int) -> None:
        """Counts as the slot's area, though nothing is drawn: the inside of a spoked wheel."""
        self._shapes.append((self._key, "area", self.camera.project(points), slot, 0, 0.0))

    def stroke(self, points, width: float, color, part: int, closed: bool = False) -> None:
        """A line of `width` metres along world points."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        pixels = self.camera.project(points)
        scale = self.camera.scale_at(float(points[:, 1].mean()))
        self._shapes.append((self._key, "closed" if closed else "open", pixels, color, part, width * scale))

    def blob(self, balls, color, part: int, shaded: bool = True) -> None:
        """The convex hull of balls [(world centre, radius in metres), ...], lighter towards the sun."""
        centers = np.array([c for c, _ in balls], dtype=np.float64)
        pixels = self.camera.project(centers)
        radii = np.array([r for _, r in balls]) * self.camera.focal / np.maximum(centers[:, 1], NEAR)
        color = np.asarray(color, dtype=np.float64)
        if not shaded or radii.max() < 1.0:
            self._hull(pixels, radii, color, part)
            return
        shift = self._lit * radii[:, None]
        self._hull(pixels, radii, color * (1 - self._tones), part)
        self._hull(pixels + 0.18 * shift, radii * 0.80, color, part)
        self._hull(pixels + 0.38 * shift, radii * 0.42, color * (1 + 0.5 * self._tones), part)

    def extruded(
        self, frame: Frame, profile, half_width: float, color, part: int, center: float = 0.0
    ) -> None:
        """A convex side view [(forward, up), ...] swept over the width: its hull, then its near side lit."""
        profile = np.asarray(profile, dtype=np.float64)
        color = np.asarray(color, dtype=np.float64)
        sides = [
            frame.world(
                np.stack([profile[:, 0], np.full(len(profile), center + s * half_width), profile[:, 1]], 1)
            )
            for s in (-1, 1)
        ]
        self.hull(np.concatenate(sides), color * 0.78, part)
        near = min(sides, key=lambda p: float(np.linalg.norm(p.mean(0)[:2])))
        self._fill(self.camera.project(near), color, part)

    def _hull(self, pixels, radii, color, part) -> None:
        points = (pixels[:, None] + radii[:, None, None] * _CIRCLE).reshape(-1, 2)
        self._fill(cv2.convexHull(points.astype(np.float32))[:, 0], color, part)

    def _fill(self, pixels, color, part) -> None:
        self._shapes.append((self._key, "fill", pixels, color, part, 0.0))

    def bounds(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 in pixels of all that was drawn so far, the image's border not regarded."""
        points = np.concatenate([s[2] for s in self._shapes])
        margin = max(s[5] for s in self._shapes) / 2
        (x0, y0), (x1, y1) = points.min(0) - margin, points.max(0) + margin
        return float(x0), float(y0), float(x1), float(y1)

    def picture(self) -> tuple[slice, slice, np.ndarray, np.ndarray] | None:
        """The colours alone, more coarsely than `render`: rows, columns, a `Sprite`'s `color` and `alpha` (h, w, 1)."""
        window = self._window()
        if window is None:
            return None
        x0, y0, w, h = window
        factor = 2 if max(w, h) < 320 else 1
        # The fourth channel says where anything is drawn.
        canvas = np.zeros((h * factor, w * factor, 4), np.uint8)
        for kind, points, paint, _, width in self._placed(x0, y0, factor):
            if kind == "fill":
                cv2.fillPoly(canvas, points, (*paint, 255), shift=_SHIFT)
            elif kind != "area":
                thickness = max(1, int(round(width * factor)))
                cv2.polylines(canvas, points, kind == "closed", (*paint, 255), thickness, shift=_SHIFT)
        small = cv2.resize(canvas, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)
        return slice(y0, y0 + h), slice(x0, x0 + w), small[:, :, :3], small[:, :, 3:] / 255

    def render(self, texture: np.random.Generator | None = None) -> Sprite | None:
        """The picture of what was collected; None if it lies outside the image."""
        window = self._window()
        if window is None:
            return None
        x0, y0, w, h = window
        factor = 4 if max(w, h) < 128 else 3 if max(w, h) < 320 else 2
        color = np.zeros((h * factor, w * factor, 3), np.uint8)
        parts = np.zeros((h * factor, w * factor), np.uint8)
        area = np.zeros_like(parts)
        for kind, points, rgb, part, width in self._placed(x0, y0, factor):
            if kind == "area":
                cv2.fillPoly(area, points, rgb, shift=_SHIFT)
                continue
            if kind == "fill":
                cv2.fillPoly(color, points, rgb, shift=_SHIFT)
                cv2.fillPoly(parts, points, part, shift=_SHIFT)
            else:
                thickness = max(1, int(round(width * factor)))
                cv2.polylines(color, points, kind == "closed", rgb, thickness, shift=_SHIFT)
                cv2.polylines(parts, points, kind == "closed", part, thickness, shift=_SHIFT)
        owner = np.array(self._owners, np.uint8)[parts]
        np.copyto(owner, area, where=owner == 0)

        def down(x):
            return cv2.resize(x, (w, h), interpolation=cv2.INTER_AREA)

        alpha = down(np.where(parts > 0, np.uint8(255), np.uint8(0))).astype(np.float32) / 255
        rgb = down(color).astype(np.float32)
        if texture is not None:
            rgb *= _texture(texture, h, w)[:, :, None]
        codes = [c for c in sorted(set(self._owners)) if c]
        shares = np.stack([down(np.where(owner == c, np.uint8(255), np.uint8(0))) for c in codes])
        best = np.array(codes, np.uint8)[shares.argmax(0)]
        best[shares.sum(0, dtype=np.int32) < 128] = 0
        coverage = {c: float((best == c).sum()) for c in codes}
        return Sprite(x0, y0, rgb, alpha, best, parts, factor, coverage)

    def _window(self) -> tuple[int, int, int, int] | None:
        """x, y, width and height of the part of the image that is drawn on."""
        x0, y0, x1, y1 = self.bounds()
        x0, y0 = max(int(np.floor(x0)) - 1, 0), max(int(np.floor(y0)) - 1, 0)
        x1 = min(int(np.ceil(x1)) + 1, self.camera.image_width)
        y1 = min(int(np.ceil(y1)) + 1, self.camera.image_height)
        return None if x1 <= x0 or y1 <= y0 else (x0, y0, x1 - x0, y1 - y0)

    def _placed(self, x0: int, y0: int, factor: int):
        """The shapes from far to near, their points as OpenCV takes them on a canvas enlarged by `factor`."""
        corner = np.array([x0, y0])
        scale = factor * (1 << _SHIFT)
        for _, kind, pixels, paint, part, width in sorted(self._shapes, key=lambda s: s[0]):
            # -0.5: OpenCV counts from pixel centres. The clip keeps far-off points inside its integer range.
            points = np.clip((pixels - corner) * scale - (1 << (_SHIFT - 1)), -(2**24), 2**24)
            points = np.rint(points).astype(np.int32)[None]
            color = int(paint) if kind == "area" else tuple(float(min(255.0, max(1.0, v))) for v in paint)
            yield kind, points, color, part, width


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A factor around 1 per pixel: fine grain on soft patches."""
    coarse = rng.normal(0, 0.05, (max(2, height // 12), max(2, width // 12))).astype(np.float32)
    fine = rng.normal(0, 0.025, (height, width)).astype(np.float32)
    return 1 + cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) + fine
