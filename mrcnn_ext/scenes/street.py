"""The street behind the actors, and the furniture that stands among them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import Camera, Frame, Light, circle
from .sketch import Sketch
from .spec import STUFF

_SHIFT = 4
WALLS = (
    (176, 120, 95),
    (200, 185, 160),
    (150, 145, 140),
    (215, 205, 190),
    (120, 95, 85),
    (165, 170, 178),
    (190, 150, 110),
    (140, 155, 150),
    (225, 215, 170),
)
LEAVES = ((70, 120, 50), (50, 95, 45), (95, 135, 60), (120, 130, 50), (60, 105, 70))


@dataclass(frozen=True)
class Road:
    """A straight road away from the camera: half its width, its centre, a pavement's width, in metres."""

    half: float
    center: float
    walk: float

    @staticmethod
    def sample(rng: np.random.Generator) -> Road:
        return Road(float(rng.uniform(3.4, 8.0)), float(rng.uniform(-2.5, 2.5)), float(rng.uniform(2.0, 4.5)))


class Backdrop:
    """
    Sky, ground and houses.

    Args:
        clear: (x0, x1, depth) of the actors, in pixels and metres; no house is put before one.

    Attributes:
        image: (H, W, 3) float32, 0 to 255.
        labels: (H, W) uint8, Cityscapes label ids.
    """

    def __init__(self, camera: Camera, light: Light, road: Road, clear: list, rng: np.random.Generator):
        self.camera, self.light, self.rng = camera, light, rng
        self.half, self.center, self.walk = road.half, road.center, road.walk
        self._clear = clear
        self._end = max([110.0] + [depth * 1.1 + 15 for _, _, depth in clear])
        h, w = camera.image_height, camera.image_width
        self.labels = np.full((h, w), STUFF["sky"], np.uint8)
        self._canvas = self._sky()
        self._ground()
        self._houses()
        self.image = cv2.GaussianBlur(self._canvas, (3, 3), 0).astype(np.float32)
        self._grain()

    def _poly(self, points, color, label: str | None) -> None:
        points = np.asarray(points, dtype=np.float64)
        self._pixels(self.camera.project(points), color, label)

    def _pixels(self, pixels, color, label) -> None:
        ints = _fixed_point(pixels)[None]
        cv2.fillPoly(self._canvas, ints, _rgb(color), cv2.LINE_AA, _SHIFT)
        if label is not None:
            cv2.fillPoly(self.labels, ints, STUFF[label], shift=_SHIFT)

    def _quads(self, quads: list, colors: list) -> None:
        """Many quadrilaterals at once, without a label; what lies outside the picture is left out."""
        if not quads:
            return
        pixels = self.camera.project(np.array(quads).reshape(-1, 3)).reshape(-1, 4, 2)
        low, high = pixels.min(1), pixels.max(1)
        h, w = self.labels.shape
        inside = (high > 0).all(1) & (low[:, 0] < w) & (low[:, 1] < h)
        ints = _fixed_point(pixels)
        for k in np.flatnonzero(inside):
            cv2.fillConvexPoly(self._canvas, ints[k], _rgb(colors[k]), cv2.LINE_AA, _SHIFT)

    def _sky(self) -> np.ndarray:
        rng, (h, w) = self.rng, self.labels.shape
        high, low = {
            "day": ((95, 150, 215), (205, 222, 238)),
            "dusk": ((90, 95, 150), (250, 190, 140)),
            "night": ((35, 45, 80), (85, 90, 120)),
        }[self.light.time]
        if self.light.time == "day" and self.light.direct < 0.18:
            high, low = (185, 190, 198), (220, 222, 225)
        t = np.clip(np.arange(h) / max(self.camera.horizon, 1), 0, 1)[:, None, None]
        sky = np.array(high) * (1 - t) + np.array(low) * t + np.zeros((1, w, 1))
        clouds = np.zeros((h, w), np.float32)
        for step, weight in ((6, 0.5), (12, 0.3), (24, 0.2)):
            noise = rng.random((step // 2 + 2, step + 2)).astype(np.float32)
            clouds += weight * cv2.resize(noise, (w, h), interpolation=cv2.INTER_CUBIC)
        clouds = np.clip((clouds - rng.uniform(0.48, 0.62)) * 5, 0, 1)[:, :, None] * (
            0.8 if self.light.time == "day" else 0.3
        )
        return (sky * (1 - clouds) + np.array((245, 245, 245)) * clouds).astype(np.uint8)

    def _strip(self, x0, x1, y0, y1, color, label) -> None:
        self._poly([(x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)], color, label)

    def _ground(self) -> None:
        rng = self.rng
        near, far = 0.5, 400.0
        grey = rng.uniform(80, 115)
        pave = np.array((158, 152, 146)) * rng.uniform(0.85, 1.1)
        field = rng.random() < 0.3
        outer = np.array((105, 128, 72)) if field else pave
        self._strip(-300, 300, near, far, outer, "terrain" if field else "sidewalk")
        left, right = self.center - self.half, self.center + self.half
        self._strip(left - self.walk, right + self.walk, near, far, pave, "sidewalk")
        for y in np.arange(1.0, 40, 1.6):
            for a, b in ((left - self.walk, left), (right, right + self.walk)):
                self._strip(a, b, y, y + 0.04, pave * 0.86, None)
        self._strip(left, right, near, far, (grey, grey, grey + 3), "road")
        for x in (left, right):
            self._strip(x - 0.12, x + 0.12, near, far, (190, 188, 182), "sidewalk")
        for x in (left + 0.5, right - 0.5):
            self._strip(x, x + 0.12, near, far, (200, 195, 170), None)
        for y in np.arange(rng.uniform(0.5, 3), 90, 6):
            self._strip(self.center - 0.08, self.center + 0.08, y, y + 3, (225, 225, 222), None)
        if rng.random() < 0.4:
            y = rng.uniform(5, 18)
            for x in np.arange(left + 0.6, right - 0.9, 1.1):
                self._strip(x, x + 0.55, y, y + 3, (228, 228, 226), None)
        for _ in range(int(rng.integers(0, 4))):
            x, y = rng.uniform(left, right), rng.uniform(3, 20)
            self._poly(circle([x, y, 0], 0.35, (1, 0, 0), (0, 1, 0), 16), (grey - 22,) * 3, None)

    def _houses(self) -> None:
        rng = self.rng
        style = rng.choice(("town", "low", "park"), p=(0.6, 0.25, 0.15))
        left, right = self.center - self.half - self.walk, self.center + self.half + self.walk
        if style == "park":
            self._hedge()
            return
        far = self._end / 110
        self._facade(-130 * far, 130 * far, self._end, rng.uniform(10, 26) * far, far)
        blocks = []
        for side, x in ((-1, left), (1, right)):
            y = rng.uniform(2, 7)
            while y < 95:
                depth = rng.uniform(7, 17)
                height = rng.uniform(4, 8) if style == "low" else rng.uniform(8, 22)
                if rng.random() > 0.12 and not self._hides(y, depth, side, x):
                    blocks.append((y, depth, side, x + side * rng.uniform(0, 2.0), height))
                y += depth + (rng.uniform(1, 5) if rng.random() < 0.3 else 0)
        for y, depth, side, x, height in sorted(blocks, key=lambda b: -b[0]):
            self._block(y, depth, side, x, height)

    def _hides(self, y, depth, side, x) -> bool:
        corners = [(x + a, b, 0.0) for a in (0, side * 16) for b in (max(y, 1.2), y + depth)]
        columns = self.camera.project(corners)[:, 0]
        return any(y < far and columns.min() < x1 and columns.max() > x0 for x0, x1, far in self._clear)

    def _hedge(self) -> None:
        rng, y = self.rng, self._end
        far = y / 110
        for _ in range(90):
            x = rng.uniform(-1, 1) * y
            color = np.array(LEAVES[int(rng.integers(len(LEAVES)))]) * rng.uniform(0.7, 1.0)
            ball = circle([x, y, far * rng.uniform(1, 6)], far * rng.uniform(2, 7), (1, 0, 0), (0, 0, 1), 14)
            self._poly(ball, color, "vegetation")

    def _facade(self, x0, x1, y, height, scale) -> None:
        """A row of houses across the view."""
        rng, x = self.rng, x0
        quads, colors = [], []

        def upright(a, b, low, high):
            return [(a, y, low), (b, y, low), (b, y, high), (a, y, high)]

        while x < x1:
            width = rng.uniform(7, 16) * scale
            top = height * rng.uniform(0.6, 1.2)
            color = np.array(WALLS[int(rng.integers(len(WALLS)))]) * 0.85
            self._poly(upright(x, x + width, 0, top), color, "building")
            for wx in np.arange(x + 1, x + width - 1.5, 2.6 * scale):
                for wz in np.arange(1.2, top - 2, 3.2 * scale):
                    quads.append(upright(wx, wx + 1.2 * scale, wz, wz + 1.7 * scale))
                    colors.append(self._pane())
            x += width
        self._quads(quads, colors)

    def _pane(self) -> tuple:
        """The colour of a window: dark, or lit."""
        if self.light.time != "day" and self.rng.random() < 0.4:
            return 255.0, 225.0, 150.0
        tone = self.rng.uniform(0.7, 1.35)
        return 72 * tone, 84 * tone, 98 * tone

    def _block(self, y, depth, side, x, height) -> None:
        rng = self.rng
        wall = np.array(WALLS[int(rng.integers(len(WALLS)))]) * rng.uniform(0.85, 1.1)
        outer = x + side * 14
        front = wall * self.light.shade((0, -1, 0))
        flank = wall * self.light.shade((-side, 0, 0))
        y0, y1 = max(y, 1.2), y + depth
        self._poly([(x, y0, 0), (outer, y0, 0), (outer, y0, height), (x, y0, height)], front, "building")
        self._poly([(x, y0, 0), (x, y1, 0), (x, y1, height), (x, y0, height)], flank, "building")
        self._poly(
            [(x, y0, height), (x, y1, height), (x, y1, height - 0.4), (x, y0, height - 0.4)],
            flank * 0.75,
            None,
        )
        shop = rng.random() < 0.5
        if shop:
            glass = self._pane()
            awning = np.array(
                ((180, 50, 45), (50, 90, 150), (60, 120, 70), (220, 190, 80))[int(rng.integers(4))]
            )
            self._poly(
                [(x, y0 + 0.5, 0.4), (x, y1 - 0.5, 0.4), (x, y1 - 0.5, 2.6), (x, y0 + 0.5, 2.6)], glass, None
            )
            self._poly(
                [(x, y0 + 0.3, 2.6), (x, y1 - 0.3, 2.6), (x, y1 - 0.3, 3.3), (x, y0 + 0.3, 3.3)], awning, None
            )
        quads, colors = [], []
        frame = wall * 1.12
        step = 2.2 if height > 9 else 2.6
        for z in np.arange(4.2 if shop else 1.1, height - 1.6, 3.0):
            for wy in np.arange(y0 + 0.8, y1 - 1.4, step):
                for grow, color in ((0.14, frame), (0.0, self._pane())):
                    a, b, lo, hi = wy - grow, wy + 1.1 + grow, z - grow, z + 1.6 + grow
                    quads.append([(x, a, lo), (x, b, lo), (x, b, hi), (x, a, hi)])
                    colors.append(color)
            for wx in np.arange(1.0, 12, 2.4):
                a, b = x + side * wx, x + side * (wx + 1.1)
                quads.append([(a, y0, z), (b, y0, z), (b, y0, z + 1.6), (a, y0, z + 1.6)])
                colors.append(self._pane())
        self._quads(quads, colors)

    def _grain(self) -> None:
        rng, (h, w) = self.rng, self.labels.shape
        noise = rng.normal(0, 1, (h, w)).astype(np.float32)
        noise = 0.5 * noise + 0.9 * cv2.resize(
            rng.normal(0, 1, (h // 4 + 1, w // 4 + 1)).astype(np.float32), (w, h)
        )
        strength = np.where(self.labels == STUFF["sky"], 0.3, 4.0).astype(np.float32)
        self.image += (noise * strength)[:, :, None]


def _fixed_point(pixels) -> np.ndarray:
    return np.rint(np.clip((pixels - 0.5) * (1 << _SHIFT), -(2**24), 2**24)).astype(np.int32)


def _rgb(color) -> tuple[float, float, float]:
    r, g, b = color
    return min(255.0, float(r)), min(255.0, float(g)), min(255.0, float(b))


# Street furniture: every drawer takes (sketch, frame, rng).
def _tree(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    part = sketch.part(stuff=STUFF["vegetation"])
    height = rng.uniform(4.5, 8)
    trunk = np.array((95, 72, 52))
    sketch.at(frame.origin[1])
    sketch.blob([(frame.world([0, 0, 0])[0], 0.2), (frame.world([0, 0, height * 0.6])[0], 0.12)], trunk, part)
    leaf = np.array(LEAVES[int(rng.integers(len(LEAVES)))], dtype=np.float64)
    for _ in range(14):
        spot = frame.world([rng.normal(0, 0.7), rng.normal(0, 0.7), height * rng.uniform(0.55, 0.95)])[0]
        sketch.blob([(spot, rng.uniform(0.5, 1.0))], leaf * rng.uniform(0.8, 1.15), part)


def _lamp(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    part = sketch.part(stuff=STUFF["pole"])
    grey = (88, 92, 96)
    sketch.at(frame.origin[1])
    sketch.stroke(frame.world([[0, 0, 0], [0, 0, 5.2]]), 0.13, grey, part)
    sketch.stroke(frame.world([[0, 0, 5.2], [1.2, 0, 5.5]]), 0.09, grey, part)
    sketch.blob(
        [(frame.world([0.9, 0, 5.42])[0], 0.1), (frame.world([1.4, 0, 5.46])[0], 0.1)], (225, 222, 200), part
    )


def _sign(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    pole, plate = sketch.part(stuff=STUFF["pole"]), sketch.part(stuff=STUFF["traffic sign"])
    sketch.at(frame.origin[1])
    x, y, _ = frame.origin
    sketch.stroke([[x, y, 0], [x, y, 2.6]], 0.07, (130, 132, 136), pole)
    center = np.array([x, y - 0.05, 2.5])
    axes = ((1.0, 0, 0), (0, 0, 1.0))
    kind = int(rng.integers(3))
    if kind == 0:
        sketch.polygon(circle(center, 0.32, *axes), (205, 30, 35), plate)
        sketch.polygon(circle(center, 0.23, *axes), (240, 240, 240), plate)
    elif kind == 1:
        for r, color in ((0.42, (205, 30, 35)), (0.27, (240, 240, 235))):
            sketch.polygon(circle(center, r, (0, 0, 1.0), (1.0, 0, 0), 3), color, plate)
    else:
        square = [center + np.array([a, 0, b]) * 0.3 for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        sketch.polygon(square, (35, 85, 170), plate)
        sketch.stroke([center - [0, 0, 0.18], center + [0, 0, 0.18]], 0.1, (240, 240, 240), plate)


def _traffic_light(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    pole, box = sketch.part(stuff=STUFF["pole"]), sketch.part(stuff=STUFF["traffic light"])
    x, y, _ = frame.origin
    sketch.at(y)
    sketch.stroke([[x, y, 0], [x, y, 2.5]], 0.1, (80, 82, 86), pole)
    case = [[x + a, y - 0.06, u] for a, u in ((-0.17, 2.3), (0.17, 2.3), (0.17, 3.25), (-0.17, 3.25))]
    sketch.polygon(case, (35, 38, 38), box)
    on = int(rng.integers(3))
    for k, (u, color) in enumerate(((3.07, (230, 40, 40)), (2.78, (245, 180, 40)), (2.48, (50, 210, 90)))):
        color = np.array(color) * (1.0 if k == on else 0.28)
        sketch.polygon(circle([x, y - 0.08, u], 0.11, (1.0, 0, 0), (0, 0, 1.0), 16), color, box)


def _bin(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    part = sketch.part(stuff=STUFF["static"])
    color = np.array(
        ((60, 90, 65), (75, 78, 84), (150, 90, 50), (200, 60, 50))[int(rng.integers(4))], dtype=np.float64
    )
    sketch.at(frame.origin[1])
    low = [(p, 0.01) for p in frame.world(circle([0, 0, 0], 0.26, (1, 0, 0), (0, 1, 0)))]
    high = [(p, 0.01) for p in frame.world(circle([0, 0, 0.95], 0.31, (1, 0, 0), (0, 1, 0)))]
    sketch.blob(low + high, color, part, shaded=False)
    sketch.polygon(frame.world(circle([0, 0, 0.95], 0.29, (1, 0, 0), (0, 1, 0))), color * 0.45, part)


def draw_bench(sketch: Sketch, frame: Frame, part: int, height: float = 0.44) -> None:
    """A bench at the frame, its back behind; a seat for a sitting figure."""
    wood, iron = (140, 100, 62), (55, 57, 60)

    def depth(f):
        return float(frame.world([f, 0, 0])[0][1])

    sketch.at(depth(-0.05) + 0.09)
    for y in (-0.75, 0.75):
        for f in (-0.25, 0.22):
            sketch.stroke(frame.world([[f, y, 0], [f, y, height]]), 0.06, iron, part)
    seat = [[-0.3, -0.9, height], [-0.3, 0.9, height], [0.25, 0.9, height], [0.25, -0.9, height]]
    sketch.polygon(frame.world(seat), wood, part)
    for f in (-0.3, 0.25):
        sketch.stroke(
            frame.world([[f, -0.9, height - 0.03], [f, 0.9, height - 0.03]]), 0.06, np.array(wood) * 0.8, part
        )
    sketch.at(depth(-0.35))
    for u in (0.18, 0.33, 0.46):
        sketch.stroke(frame.world([[-0.33, -0.9, height + u], [-0.33, 0.9, height + u]]), 0.08, wood, part)


def draw_board(sketch: Sketch, frame: Frame, rng: np.random.Generator) -> None:
    """A hoarding across the view, that hides legs or more."""
    part = sketch.part(stuff=STUFF["static"])
    width, low = rng.uniform(0.2, 0.65), rng.choice((0.0, 0.5))
    high = low + rng.uniform(0.4, 1.0)
    color = np.array(WALLS[int(rng.integers(len(WALLS)))], dtype=np.float64)
    x, y, _ = frame.origin
    sketch.at(y)
    for side in (-1, 1):
        sketch.stroke(
            [[x + side * width / 2, y, 0], [x + side * width / 2, y, high]], 0.07, color * 0.6, part
        )

    def panel(grow, tint):
        corners = [(-1, low - grow), (1, low - grow), (1, high + grow), (-1, high + grow)]
        sketch.polygon([[x + a * (width / 2 + grow), y - 0.02, max(u, 0.0)] for a, u in corners], tint, part)

    panel(0.0, color * 0.7)
    panel(-0.07, color)
    for u in np.arange(low + 0.15, high - 0.1, 0.25):
        sketch.stroke(
            [[x - width * 0.35, y - 0.03, u], [x + width * 0.35, y - 0.03, u]], 0.05, color * 0.5, part
        )


FURNITURE = (_tree, _lamp, _sign, _traffic_light, _bin)
