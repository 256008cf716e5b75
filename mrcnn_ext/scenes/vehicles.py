"""Cars, trucks, buses and trains: side profiles swept over the width, with what is mounted on each face."""

from __future__ import annotations

import numpy as np

from .geometry import Frame, circle
from .sketch import Sketch

PAINTS = (
    (225, 226, 228),
    (35, 37, 42),
    (150, 154, 160),
    (180, 30, 35),
    (30, 60, 130),
    (95, 100, 108),
    (20, 90, 70),
    (205, 170, 110),
    (90, 140, 190),
    (120, 40, 40),
    (215, 120, 30),
)
GLASS = np.array((70, 92, 110), dtype=np.float64)
DARK = np.array((32, 33, 36), dtype=np.float64)
LAMP, TAIL, AMBER, PLATE = (255, 252, 230), (205, 25, 30), (245, 150, 30), (240, 240, 228)
_F, _L, _U = np.eye(3)


class Shell:
    """
    A body given by its side view, swept over the width; above `belt` it narrows by `taper` metres per metre.

    `pt(f, s, u)` is the world point at forward f, side s (-1 right, 1 left) and height u.
    """

    def __init__(
        self, sketch: Sketch, frame: Frame, part: int, half: float, belt: float = 99.0, taper: float = 0.0
    ):
        self.sketch, self.frame, self.part = sketch, frame, part
        self.half, self.belt, self.taper = half, belt, taper
        camera = np.array([0.0, 0.0, sketch.camera.height]) - frame.origin
        self.camera = frame.axes @ camera  # local
        self.near = 1 if self.camera[1] > 0 else -1

    def pts(self, points) -> np.ndarray:
        points = np.asarray(points, dtype=np.float64)
        half = self.half - np.maximum(points[:, 2] - self.belt, 0) * self.taper
        return self.frame.world(np.stack([points[:, 0], points[:, 1] * half, points[:, 2]], axis=1))

    def sees_side(self) -> bool:
        return abs(self.camera[1]) > self.half

    def sees(self, p, q) -> bool:
        """Whether the strip swept from profile point p to q (profiles run clockwise seen from the left)."""
        normal = np.array([p[1] - q[1], 0, q[0] - p[0]])
        return float(np.dot(normal, self.camera - [p[0], 0, p[1]])) > 0

    def sweep(self, profile, color) -> None:
        """Body panels: the strips of the profile that face the camera, then the near side."""
        color = np.asarray(color, dtype=np.float64)
        shade = self.sketch.light.shade
        strips = []
        for p, q in zip(profile, profile[1:] + profile[:1], strict=True):
            if self.sees(p, q):
                normal = np.array([p[1] - q[1], 0, q[0] - p[0]])
                normal = self.frame.direction(normal / max(np.linalg.norm(normal), 1e-9))
                quad = self.pts([(p[0], -1, p[1]), (p[0], 1, p[1]), (q[0], 1, q[1]), (q[0], -1, q[1])])
                strips.append((-quad[:, 1].mean(), quad, color * shade(normal)))
        for _, quad, tone in sorted(strips, key=lambda s: s[0]):
            self.sketch.polygon(quad, tone, self.part)
        if self.sees_side():
            tone = color * shade(self.frame.direction([0, self.near, 0]))
            self.sketch.polygon(self.pts([(f, self.near, u) for f, u in profile]), tone, self.part)

    def side(self, points, color, out: float = 1.0) -> None:
        """A flat shape [(f, u), ...] on the near side."""
        if self.sees_side():
            self.sketch.polygon(self.pts([(f, self.near * out, u) for f, u in points]), color, self.part)

    def side_line(self, points, width, color) -> None:
        if self.sees_side():
            self.sketch.stroke(self.pts([(f, self.near, u) for f, u in points]), width, color, self.part)

    def strip(self, p, q, color, s=(-1, 1), t=(0, 1)) -> None:
        """A shape on the strip p to q: `s` across the width, `t` along it."""
        if not self.sees(p, q):
            return
        p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
        a, b = p + (q - p) * t[0], p + (q - p) * t[1]
        self.sketch.polygon(
            self.pts([(a[0], s[0], a[1]), (a[0], s[1], a[1]), (b[0], s[1], b[1]), (b[0], s[0], b[1])]),
            color,
            self.part,
        )

    def lamp(self, f, s, u, radius, color, facing) -> None:
        """A round lamp on the front (facing=1) or rear (-1) at side s and height u."""
        if (self.camera[0] - f) * facing > 0:
            center = np.array([f, s * self.half, u])
            self.sketch.polygon(self.frame.world(circle(center, radius, _L, _U, 16)), color, self.part)

    def tyres(self, f, radius, width=0.22) -> None:
        """A pair of tyres at f, as dark shapes."""
        for side in (-self.near, self.near):
            outer = side * (self.half - 0.02)
            inner = outer - side * width
            rings = [self.frame.world(circle([f, y, radius], radius - 0.01, _F, _U)) for y in (inner, outer)]
            self.sketch.blob(
                [(p, 0.01) for ring in rings for p in ring], (26, 26, 28), self.part, shaded=False
            )

    def wheel_face(self, f, radius, rim=(165, 168, 174), spokes=5) -> None:
        """The near wheel at f seen from its side: tyre, rim, spokes, hub."""
        if not self.sees_side():
            return
        hub = np.array([f, self.near * (self.half - 0.01), radius])
        rim = np.array(rim, dtype=np.float64)

        def disc(scale, color):
            points = self.frame.world(circle(hub, radius * scale, _F, _U, 26))
            self.sketch.polygon(points, color, self.part)

        disc(1.0, (34, 34, 37))
        disc(0.66, rim)
        for a in np.linspace(0, 2 * np.pi, spokes, endpoint=False) + 0.3:
            d = (np.cos(a) * _F + np.sin(a) * _U) * radius
            e = (-np.sin(a) * _F + np.cos(a) * _U) * radius
            hole = [
                hub + d * 0.24 + e * 0.08,
                hub + d * 0.57 + e * 0.17,
                hub + d * 0.57 - e * 0.17,
                hub + d * 0.24 - e * 0.08,
            ]
            self.sketch.polygon(self.frame.world(hole), (72, 74, 78), self.part)
        disc(0.14, rim * 0.8)

    def arch(self, f, radius, height) -> None:
        """The dark opening over a wheel."""
        angle = np.linspace(0, np.pi, 14)
        points = [(f + radius * np.cos(a), height + radius * np.sin(a)) for a in angle]
        self.side(points + [(f - radius, 0.2), (f + radius, 0.2)], DARK * 0.8)


def _pick(rng, options):
    return np.array(options[int(rng.integers(len(options)))], dtype=np.float64)


def _under(shell: Shell, rear, front, low, high) -> None:
    """The dark floor between the wheels."""
    floor = [(rear, low), (rear, high), (front, high), (front, low)]
    half, shell.half = shell.half, shell.half * 0.9
    shell.sweep(floor, DARK * 0.7)
    shell.half = half


def draw_car(sketch: Sketch, frame: Frame, rng: np.random.Generator, slot: int) -> None:
    kind = ("sedan", "hatchback", "suv", "estate", "van", "taxi")[
        int(rng.choice(6, p=(0.25, 0.25, 0.18, 0.12, 0.12, 0.08)))
    ]
    paint = np.array((240, 190, 40), dtype=np.float64) if kind == "taxi" else _pick(rng, PAINTS)
    # Rear end, boot, base of rear window, roof rear, roof front, base of windscreen, nose, belt, roof, wheel.
    rear, boot, back, roof_r, roof_f, screen, nose, belt, roof, wheel = {
        "sedan": (-2.2, -2.12, -1.5, -0.95, 0.2, 1.0, 2.15, 0.95, 1.43, 0.32),
        "taxi": (-2.2, -2.12, -1.5, -0.95, 0.2, 1.0, 2.15, 0.95, 1.43, 0.32),
        "hatchback": (-1.9, -1.88, -1.8, -1.45, 0.25, 1.05, 1.95, 0.95, 1.46, 0.31),
        "suv": (-2.2, -2.2, -2.1, -1.8, 0.3, 0.95, 2.1, 1.12, 1.72, 0.38),
        "estate": (-2.3, -2.28, -2.22, -1.9, 0.2, 1.0, 2.15, 0.95, 1.46, 0.32),
        "van": (-2.2, -2.2, -2.15, -2.0, 0.9, 1.65, 2.25, 1.1, 1.85, 0.33),
    }[kind]
    half = 0.95 if kind in ("suv", "van") else 0.88
    part = sketch.part(slot)
    depth = float(frame.origin[1])
    sketch.at(depth)
    shell = Shell(sketch, frame, part, half, belt - 0.05, 0.32 if kind != "van" else 0.18)
    axle_r, axle_f = rear + 0.75, nose - 0.82
    hood = belt - 0.14 if kind != "van" else belt - 0.08
    _under(shell, rear + 0.15, nose - 0.15, 0.16, 0.4)
    for f in sorted((axle_r, axle_f), key=lambda f: -frame.world([f, 0, 0])[0][1]):
        shell.tyres(f, wheel)
    # The profile runs clockwise seen from the left: up the rear, along the top, down the front.
    body = [
        (rear + 0.05, 0.26),
        (rear - 0.03, 0.55),
        (boot, belt - 0.04),
        (back, belt),
        (screen, belt),
        (nose - 0.15, hood),
        (nose, hood - 0.18),
        (nose + 0.03, 0.5),
        (nose - 0.06, 0.24),
    ]
    shell.sweep(body, paint)
    cabin = [
        (back, belt - 0.01),
        (roof_r, roof - 0.02),
        ((roof_r + roof_f) / 2, roof + 0.02),
        (roof_f, roof - 0.01),
        (screen, belt - 0.01),
    ]
    shell.sweep(cabin, paint)
    glass = GLASS * float(rng.uniform(0.75, 1.15))
    shine = np.minimum(glass * 1.5 + 20, 235)
    for p, q in (
        ((roof_f, roof - 0.01), (screen, belt - 0.01)),
        ((back, belt - 0.01), (roof_r, roof - 0.02)),
    ):
        windscreen = q[0] > p[0] and p[1] > q[1]
        if not windscreen and kind == "van" and rng.random() < 0.5:
            continue
        shell.strip(p, q, glass, (-0.88, 0.88), (0.1, 0.9))
        shell.strip(p, q, shine, (-0.7, -0.35), (0.15, 0.85))
        if windscreen:
            shell.strip(p, q, DARK, (-0.12, 0.12), (0.08, 0.2))
    # Side windows, set in from the cabin's outline, with pillars.
    low, high = belt + 0.04, roof - 0.09

    def edge(f0, u0, f1, u1, u):
        return f0 + (f1 - f0) * (u - u0) / (u1 - u0)

    rear_low, rear_high = (edge(back, belt, roof_r, roof, u) + 0.12 for u in (low, high))
    front_low, front_high = (edge(screen, belt, roof_f, roof, u) - 0.12 for u in (low, high))
    middle = (back + screen) / 2 + 0.12
    shell.side([(rear_low, low), (rear_high, high), (middle - 0.05, high), (middle - 0.05, low)], glass)
    shell.side([(middle + 0.05, low), (middle + 0.05, high), (front_high, high), (front_low, low)], glass)
    shell.side(
        [(middle + 0.2, low), (middle + 0.45, high), (middle + 0.62, high), (middle + 0.37, low)], shine
    )
    if roof_r < -1.4:
        post = rear_low + (middle - rear_low) * 0.42
        shell.side(_box(post - 0.04, post + 0.04, low - 0.02, high + 0.02), paint * 0.8)
    # Doors, handles, sill, arches, then the wheels again on top of the arches.
    seam = paint * 0.6
    for f in (middle, screen - 0.05):
        shell.side_line([(f, belt - 0.02), (f, 0.34)], 0.018, seam)
    shell.side_line([(axle_r + 0.32, belt - 0.03), (axle_r + 0.42, 0.34)], 0.018, seam)
    for f in (middle - 0.35, middle + 0.5 if kind != "van" else middle + 0.8):
        shell.side_line([(f - 0.09, belt - 0.13), (f + 0.09, belt - 0.13)], 0.03, paint * 0.45)
    shell.side_line([(rear + 0.1, 0.3), (nose - 0.1, 0.28)], 0.07, DARK)
    shell.side_line(
        [(rear + 0.05, belt - 0.22), (nose - 0.3, belt - 0.25)], 0.02, np.minimum(paint * 1.15 + 12, 255)
    )
    for f in (axle_r, axle_f):
        shell.arch(f, wheel + 0.07, wheel)
    for f in (axle_r, axle_f):
        shell.wheel_face(f, wheel)
    # Front.
    front_low, front_high = (nose + 0.03, 0.5), (nose, hood - 0.18)
    for s in (-1, 1):
        shell.strip(front_high, front_low, (235, 240, 245), sorted((s * 0.95, s * 0.58)), (-0.08, 0.45))
        shell.lamp(nose + 0.03, s * 0.77, hood - 0.24, 0.075, LAMP, 1)
        shell.strip((nose + 0.03, 0.5), (nose - 0.06, 0.24), AMBER, sorted((s * 0.85, s * 0.68)), (0.2, 0.4))
    shell.strip(front_high, front_low, DARK, (-0.5, 0.5), (0.1, 0.75))
    shell.strip(front_high, front_low, (150, 152, 156), (-0.5, 0.5), (0.36, 0.44))
    shell.strip((nose + 0.03, 0.5), (nose - 0.06, 0.24), DARK, (-0.6, 0.6), (0.45, 0.9))
    shell.strip((nose + 0.03, 0.5), (nose - 0.06, 0.24), PLATE, (-0.28, 0.28), (0.0, 0.42))
    # Rear.
    low_edge, high_edge = (rear - 0.03, 0.55), (boot, belt - 0.04)
    for s in (-1, 1):
        shell.strip(low_edge, high_edge, TAIL, sorted((s * 0.97, s * 0.62)), (0.4, 0.88))
        shell.strip(low_edge, high_edge, (255, 190, 120), sorted((s * 0.8, s * 0.66)), (0.45, 0.6))
    shell.strip(low_edge, high_edge, PLATE, (-0.28, 0.28), (0.3, 0.62))
    shell.strip((rear + 0.05, 0.26), low_edge, DARK, (-0.85, 0.85), (0.1, 0.5))
    shell.side([(rear + 0.02, belt - 0.3), (rear + 0.02, belt - 0.1), (rear + 0.2, belt - 0.1)], TAIL)
    shell.side(
        [(nose - 0.05, hood - 0.26), (nose - 0.12, hood - 0.08), (nose - 0.42, hood - 0.1)], (235, 240, 245)
    )
    for s in (-1, 1):
        # Seen from behind, the far mirror is hidden by the cabin, or nearly so.
        sketch.at(depth - (1.0 if s == shell.near or shell.camera[0] > 0 else -1.0))
        mirror = frame.world([screen - 0.12, s * (half + 0.1), belt + 0.07])[0]
        sketch.blob([(mirror, 0.07), (mirror - frame.direction([0, 0.06 * s, 0]), 0.06)], paint * 0.75, part)
    sketch.at(depth)
    if kind == "taxi":
        sign = Shell(sketch, frame, part, 0.3)
        sign.sweep([(-0.5, roof), (-0.46, roof + 0.18), (-0.2, roof + 0.18), (-0.16, roof)], (250, 250, 235))
        shell.side([(f, u) for f, u in ((-1.2, 0.62), (-1.2, 0.72), (1.0, 0.72), (1.0, 0.62))], DARK)


def _box(rear: float, front: float, low: float, high: float) -> list:
    return [(rear, low), (rear, high), (front, high), (front, low)]


def draw_truck(sketch: Sketch, frame: Frame, rng: np.random.Generator, slot: int) -> None:
    kind = ("box", "semi", "tipper", "tanker", "flatbed")[int(rng.choice(5, p=(0.38, 0.24, 0.16, 0.12, 0.1)))]
    paint = _pick(rng, PAINTS)
    load_paint = _pick(
        rng, ((235, 236, 238), (225, 215, 195), (60, 110, 170), (190, 60, 45), (85, 130, 90), (215, 180, 60))
    )
    long = kind == "semi"
    part = sketch.part(slot)
    half = 1.22
    rear, front = (-8.0, 4.2) if long else (-4.4, 3.6)
    cab_rear = front - 2.0
    radius = 0.5
    axles = [front - 1.25, rear + 1.4] + ([rear + 2.5, rear + 3.6, cab_rear - 0.6] if long else [rear + 2.5])

    def depth(f):
        return float(frame.world([f, 0, 0])[0][1])

    chassis = Shell(sketch, frame, part, half * 0.8)
    sketch.at(depth((rear + front) / 2) + 30)
    chassis.sweep(_box(rear + 0.1, front - 0.3, 0.55, 0.95), DARK)
    tyres = Shell(sketch, frame, part, half)
    for f in sorted(axles, key=lambda f: -depth(f)):
        tyres.tyres(f, radius, 0.4)

    load = (rear, cab_rear - 0.35)
    sketch.at(depth(sum(load) / 2))
    body = Shell(sketch, frame, part, half)
    low = 0.98
    if kind in ("box", "semi"):
        high = 3.5 if long else 3.2
        body.sweep(_box(*load, low, high), load_paint)
        trim = load_paint * 0.72
        for f in np.linspace(load[0] + 0.02, load[1] - 0.02, 2 + int((load[1] - load[0]) / 1.1)):
            body.side_line([(f, low), (f, high)], 0.03, trim)
        for u in (low + 0.03, high - 0.04):
            body.side_line([(load[0], u), (load[1], u)], 0.08, trim)
        if rng.random() < 0.7:
            accent = _pick(rng, PAINTS)
            mid, span = sum(load) / 2, (load[1] - load[0]) * 0.3
            if rng.random() < 0.5:
                body.side(_box(load[0] + 0.1, load[1] - 0.1, low + 0.6, low + 1.0), accent)
            else:
                disc = [
                    (mid + span * 0.5 * np.cos(a), (low + high) / 2 + 0.75 * np.sin(a))
                    for a in np.linspace(0, 6.28, 20)
                ]
                body.side(disc, accent)
                body.side(
                    _box(mid - span, mid + span, (low + high) / 2 - 0.12, (low + high) / 2 + 0.12),
                    load_paint * 0.9,
                )
        p, q = (load[0], low), (load[0], high)
        for s in (-0.97, 0.0, 0.97):
            body.strip(p, q, trim, (s - 0.015, s + 0.015))
        for s in (-0.5, 0.5):
            body.strip(p, q, (120, 122, 126), (s - 0.02, s + 0.02), (0.03, 0.97))
            body.strip(p, q, (90, 92, 96), (s - 0.12, s + 0.02), (0.28, 0.31))
    elif kind == "tipper":
        tub = [
            (load[0] - 0.1, low + 0.15),
            (load[0] - 0.35, 2.5),
            (load[1], 2.55),
            (load[1] - 0.15, low + 0.1),
        ]
        heap = [
            (load[0] + 0.1, 2.4),
            (load[0] + 1.2, 2.85),
            (load[0] + 2.4, 2.95),
            (load[1] - 0.5, 2.6),
            (load[1] - 0.2, 2.4),
        ]
        body.sweep(heap, (140, 110, 75))
        body.sweep(tub, load_paint)
        for f in np.linspace(load[0] + 0.2, load[1] - 0.4, 5):
            body.side_line([(f, low + 0.2), (f - 0.1, 2.5)], 0.09, load_paint * 0.7)
        body.side_line([(load[0] - 0.35, 2.5), (load[1], 2.55)], 0.12, load_paint * 0.7)
    elif kind == "tanker":
        rings = [
            (p, 0.02)
            for f in (load[0] + 0.1, load[1] - 0.1)
            for p in frame.world(circle([f, 0, 2.05], 1.1, _L, _U, 20))
        ]
        tank = np.array((205, 208, 212), dtype=np.float64) if rng.random() < 0.6 else load_paint
        sketch.blob(rings, tank * 0.8, part, shaded=False)
        top = [
            (p, 0.02)
            for f in (load[0] + 0.1, load[1] - 0.1)
            for p in frame.world(circle([f, 0.1 * body.near, 2.2], 0.8, _L, _U, 20))
        ]
        sketch.blob(top, np.minimum(tank * 1.08, 255), part, shaded=False)
        for end, sign in ((load[0] + 0.1, -1), (load[1] - 0.1, 1)):
            if (body.camera[0] - end) * sign > 0:
                sketch.polygon(frame.world(circle([end, 0, 2.05], 1.1, _L, _U, 24)), tank * 0.9, part)
                sketch.polygon(frame.world(circle([end, 0, 2.05], 0.5, _L, _U, 20)), tank * 0.78, part)
        for f in np.linspace(load[0] + 0.6, load[1] - 0.6, 4):
            band = circle([f, 0, 2.05], 1.11, _L, _U, 28)
            facing = band[(band[:, 1] * body.near) > -0.1]
            sketch.stroke(frame.world(facing[np.argsort(facing[:, 2])]), 0.06, tank * 0.6, part)
        body.side(_box(load[0] + 0.3, load[1] - 0.3, 1.9, 2.15), (200, 50, 40))
    else:
        body.sweep(_box(*load, low, low + 0.18), (110, 85, 60))
        body.sweep(_box(load[1] - 0.12, load[1], low, 2.3), load_paint * 0.8)
        for k, f in enumerate(np.linspace(load[0] + 0.3, load[1] - 1.6, 3)):
            crate = Shell(sketch, frame, part, half * 0.85)
            color = ((165, 120, 75), (150, 105, 65), (175, 135, 90))[k]
            crate.sweep(_box(f, f + 1.25, low + 0.18, low + 1.25 - 0.2 * (k == 1)), color)
            crate.side_line([(f, low + 0.2), (f + 1.25, low + 1.1)], 0.07, np.array(color) * 0.7)
            crate.side_line([(f, low + 0.72), (f + 1.25, low + 0.72)], 0.05, np.array(color) * 0.75)
    # Rear bumper with lamps, mud flaps, underrun guard.
    sketch.at(depth(rear) - 0.02)
    for s in (-1, 1):
        body.strip((rear, 0.62), (rear, 0.98), TAIL, sorted((s * 0.95, s * 0.6)), (0.45, 0.95))
        body.strip((rear, 0.62), (rear, 0.98), AMBER, sorted((s * 0.6, s * 0.48)), (0.45, 0.95))
    body.strip((rear, 0.62), (rear, 0.98), PLATE, (-0.22, 0.22), (0.4, 0.95))
    body.strip((rear, 0.5), (rear, 0.62), (200, 200, 200), (-0.95, 0.95))
    sketch.at(depth((rear + front) / 2) - 0.01)
    if body.sees_side():
        body.side_line(
            [(rear + 3.6 + (1.0 if long else -0.2), 0.62), (cab_rear - (1.4 if long else 0.4), 0.62)],
            0.08,
            (150, 152, 155),
        )
    if not long:
        body.side(_box(cab_rear - 1.3, cab_rear - 0.4, 0.5, 0.95), (165, 168, 172))
    # Cab.
    sketch.at(depth(cab_rear + 1.0))
    cab = Shell(sketch, frame, part, half, 1.7, 0.05)
    top = 2.85 if not long else 3.1
    outline = [(cab_rear, 0.55), (cab_rear, top), (front - 0.5, top), (front - 0.05, 1.75), (front, 0.45)]
    cab.sweep(outline, paint)
    glass = GLASS * float(rng.uniform(0.7, 1.0))
    p, q = (front - 0.5, top), (front - 0.05, 1.75)
    cab.strip(p, q, DARK, (-0.92, 0.92), (0.1, 0.98))
    cab.strip(p, q, glass, (-0.88, 0.88), (0.2, 0.96))
    cab.strip(p, q, np.minimum(glass * 1.6 + 20, 235), (-0.6, -0.3), (0.25, 0.9))
    p, q = (front - 0.05, 1.75), (front, 0.45)
    cab.strip(p, q, DARK, (-0.65, 0.65), (0.12, 0.55))
    for t in (0.2, 0.3, 0.4, 0.5):
        cab.strip(p, q, (150, 152, 156), (-0.62, 0.62), (t, t + 0.035))
    cab.strip(p, q, DARK * 1.4, (-1, 1), (0.72, 1.0))
    for s in (-1, 1):
        cab.strip(p, q, LAMP, sorted((s * 0.93, s * 0.66)), (0.74, 0.9))
        cab.strip(p, q, AMBER, sorted((s * 0.99, s * 0.94)), (0.74, 0.9))
    cab.strip(p, q, PLATE, (-0.22, 0.22), (0.78, 0.92))
    cab.side(
        [
            (cab_rear + 0.75, 1.75),
            (cab_rear + 0.75, top - 0.3),
            (front - 0.5, top - 0.3),
            (front - 0.2, 1.75),
        ],
        glass,
    )
    cab.side_line([(cab_rear + 0.65, 0.8), (cab_rear + 0.65, top - 0.15)], 0.025, paint * 0.55)
    cab.side_line([(cab_rear + 0.8, 1.55), (cab_rear + 1.05, 1.55)], 0.05, paint * 0.4)
    cab.side(_box(cab_rear + 0.1, front - 0.1, 0.5, 0.62), DARK)
    if cab.sees_side():
        cab.arch(axles[0], radius + 0.08, radius)
        # What lies on a side that can be seen is hidden by no part of the truck.
        sketch.at(min(depth(rear), depth(front)) - 1)
        for f in axles:
            tyres.wheel_face(f, radius, (175, 178, 182), 8)
    sketch.at(depth(front))
    for s in (-1, 1):
        if s == cab.near or cab.camera[0] > front:
            arm = frame.world([[front - 0.25, s * half, 2.45], [front - 0.1, s * (half + 0.25), 2.4]])
            sketch.stroke(arm, 0.04, DARK, part)
            mirror = frame.world([[front - 0.1, s * (half + 0.25), u] for u in (1.85, 2.45)])
            sketch.blob([(m, 0.09) for m in mirror], DARK, part, shaded=False)
    if long:
        cab.sweep([(cab_rear + 0.2, top), (cab_rear + 0.3, 3.4), (front - 0.9, top + 0.02)], paint * 0.95)


def draw_bus(sketch: Sketch, frame: Frame, rng: np.random.Generator, slot: int) -> None:
    kind = ("city", "double", "coach")[int(rng.choice(3, p=(0.5, 0.28, 0.22)))]
    paints = (
        (200, 35, 40),
        (245, 195, 50),
        (40, 120, 80),
        (45, 95, 175),
        (235, 236, 238),
        (230, 120, 40),
        (120, 60, 140),
    )
    paint = (
        np.array((200, 30, 35), dtype=np.float64)
        if kind == "double" and rng.random() < 0.7
        else _pick(rng, paints)
    )
    trim = _pick(rng, ((240, 240, 240), (60, 60, 65), (245, 200, 60), (40, 80, 150)))
    part = sketch.part(slot)
    half, radius = 1.25, 0.48
    rear, front, high = (-5.2, 5.2, 4.25) if kind == "double" else (-5.8, 5.8, 3.1 if kind == "city" else 3.4)
    floor = 0.34
    sketch.at(float(frame.origin[1]))
    shell = Shell(sketch, frame, part, half, high - 0.5, 0.12)
    axles = (rear + 2.6, front - 2.5)
    _under(shell, rear + 0.3, front - 0.3, 0.25, 0.6)
    for f in sorted(axles, key=lambda f: -frame.world([f, 0, 0])[0][1]):
        shell.tyres(f, radius, 0.35)
    slope = 0.25 if kind != "coach" else 0.55
    outline = [
        (rear, floor),
        (rear, high - 0.15),
        (rear + 0.15, high),
        (front - slope, high),
        (front - 0.06, 1.25),
        (front, floor),
    ]
    shell.sweep(outline, paint)
    glass = GLASS * float(rng.uniform(0.65, 1.0))
    shine = np.minimum(glass * 1.5 + 15, 230)

    def windows(low, top, start, end, count, doors=()):
        shell.side(_box(start, end, low - 0.06, top + 0.06), DARK)
        edges = np.linspace(start, end, count + 1)
        for k in range(count):
            a, b = edges[k] + 0.05, edges[k + 1] - 0.05
            shell.side(_box(a, b, low, top), glass)
            shell.side([(a + 0.1, low), (a + 0.35, top), (a + 0.55, top), (a + 0.3, low)], shine)
            if k % 2 == 0:
                shell.side(_box(a, b, top - 0.22, top - 0.18), DARK)

    count = 7 if kind != "coach" else 6
    lower_top = 2.2 if kind == "double" else high - 0.75
    windows(
        1.35 if kind != "coach" else 1.75,
        lower_top if kind != "coach" else high - 0.5,
        rear + 0.35,
        front - 0.55,
        count,
    )
    if kind == "double":
        windows(2.85, 3.75, rear + 0.35, front - 0.4, count)
        shell.side(_box(rear + 0.05, front - 0.15, 2.4, 2.66), trim)
    elif kind == "city":
        shell.side(_box(rear + 0.05, front - 0.1, 0.85, 1.05), trim)
        shell.side(_box(front - 3.2, front - 0.6, high - 0.5, high - 0.2), DARK)
        shell.side(_box(front - 3.0, front - 0.9, high - 0.43, high - 0.28), AMBER)
    else:
        shell.side([(rear + 0.1, 0.7), (rear + 0.1, 1.5), (rear + 3.5, 1.5), (front - 2, 0.7)], trim)
        for k in range(4):
            f = rear + 3.5 + k * 1.1
            shell.side_line([(f, 0.45), (f, 1.2), (f + 1.0, 1.2), (f + 1.0, 0.45)], 0.02, paint * 0.6)
    # Doors are on the right (the side of the pavement); the left has windows only.
    if shell.near == -1:
        for f in (front - 1.15, -0.55) if kind != "coach" else (front - 1.15,):
            shell.side(_box(f - 0.65, f + 0.65, floor + 0.08, 2.3), DARK)
            for a, b in ((f - 0.58, f - 0.04), (f + 0.04, f + 0.58)):
                shell.side(_box(a, b, floor + 0.2, 2.2), shine * 0.9)
                shell.side(_box(a, b, 1.2, 1.25), (235, 200, 60))
    else:
        shell.side(_box(front - 1.15, front - 0.25, 1.25, 2.25), glass)
    shell.side(_box(rear, front, floor, floor + 0.12), DARK)
    for f in axles:
        shell.arch(f, radius + 0.09, radius)
    for f in axles:
        shell.wheel_face(f, radius, (180, 182, 186), 8)
    # Front: a tall screen, the destination above, lamps below.
    p, q = (front - slope, high), (front - 0.06, 1.25)
    span = high - 1.25
    shell.strip(p, q, DARK, (-0.94, 0.94), (0.04, 0.99))
    if kind == "double":
        shell.strip(p, q, glass, (-0.9, 0.9), (0.16, 0.46))
        shell.strip(p, q, AMBER, (-0.55, 0.55), (0.52, 0.58))
        shell.strip(p, q, paint, (-0.98, 0.98), (0.47, 0.505))
        shell.strip(p, q, glass, (-0.9, 0.9), (0.62, 0.97))
    else:
        shell.strip(p, q, AMBER, (-0.6, 0.6), (0.08, 0.08 + 0.22 / span))
        shell.strip(p, q, glass, (-0.9, 0.9), (0.2, 0.97))
    shell.strip(p, q, shine, (-0.6, -0.35), (0.65, 0.95))
    shell.strip(p, q, DARK, (-0.015, 0.015), (0.62, 0.97))
    p, q = (front - 0.06, 1.25), (front, floor)
    for s in (-1, 1):
        shell.strip(p, q, LAMP, sorted((s * 0.9, s * 0.62)), (0.32, 0.55))
        shell.strip(p, q, AMBER, sorted((s * 0.97, s * 0.91)), (0.32, 0.55))
    shell.strip(p, q, DARK, (-0.5, 0.5), (0.6, 0.85))
    shell.strip(p, q, trim, (-0.5, 0.5), (0.1, 0.2))
    shell.strip(p, q, PLATE, (-0.2, 0.2), (0.63, 0.8))
    # Rear: a smaller window, engine grille, tall lamps.
    p, q = (rear, floor), (rear, high - 0.15)

    def t(u):
        return (u - floor) / (high - 0.15 - floor)

    shell.strip(p, q, glass, (-0.75, 0.75), (t(high - 1.2), t(high - 0.5)))
    if kind == "double":
        shell.strip(p, q, glass, (-0.75, 0.75), (t(1.6), t(2.3)))
    shell.strip(p, q, DARK, (-0.6, 0.6), (t(0.75), t(1.3)))
    for u in (0.85, 0.98, 1.11, 1.24):
        shell.strip(p, q, paint * 0.7, (-0.58, 0.58), (t(u), t(u + 0.05)))
    for s in (-1, 1):
        shell.strip(p, q, TAIL, sorted((s * 0.95, s * 0.78)), (t(0.8), t(1.3)))
        shell.strip(p, q, AMBER, sorted((s * 0.95, s * 0.78)), (t(1.32), t(1.5)))
    shell.strip(p, q, PLATE, (-0.2, 0.2), (t(0.5), t(0.64)))
    sketch.at(float(frame.world([front, 0, 0])[0][1]))
    for s in (-1, 1):
        if s == shell.near or shell.camera[0] > front:
            start = frame.world([front - 0.2, s * half, min(high, 3.0) - 0.3])[0]
            end = frame.world([front + 0.25, s * (half + 0.2), min(high, 3.0) - 0.45])[0]
            drop = frame.world([front + 0.25, s * (half + 0.2), min(high, 3.0) - 1.0])[0]
            sketch.stroke([start, end], 0.05, DARK, part)
            sketch.blob([(end, 0.09), (drop, 0.09)], DARK, part, shaded=False)


def draw_train(sketch: Sketch, frame: Frame, rng: np.random.Generator, slot: int) -> None:
    """A train of coupled carriages centred on the frame; `draw_track` draws what it runs on."""
    kind = ("commuter", "tram", "express", "freight")[int(rng.choice(4, p=(0.36, 0.24, 0.2, 0.2)))]
    paint = _pick(
        rng, ((190, 35, 40), (40, 80, 150), (230, 232, 235), (245, 190, 40), (35, 110, 75), (225, 110, 40))
    )
    band = _pick(rng, ((240, 240, 240), (40, 45, 60), (245, 190, 40), (200, 40, 45), (60, 130, 200)))
    if np.abs(paint - band).sum() < 80:
        band = np.array((40, 45, 60), dtype=np.float64)
    part = sketch.part(slot)
    half, floor = 1.4, 0.75 if kind != "tram" else 0.35
    high = {"commuter": 3.8, "tram": 3.4, "express": 3.75, "freight": 3.9}[kind]
    length, count = {"commuter": (9.0, 2), "tram": (6.2, 3), "express": (9.5, 2), "freight": (6.2, 3)}[kind]
    gap = 0.5
    total = count * length + (count - 1) * gap
    glass = GLASS * float(rng.uniform(0.6, 0.95))
    for k in range(count):
        rear = -total / 2 + k * (length + gap)
        front = rear + length
        middle = frame.world([(rear + front) / 2, 0, 0])[0]
        sketch.at(float(middle[1]))
        shell = Shell(sketch, frame, part, half, high - 0.6, 0.45)
        head, tail = k == count - 1, k == 0
        # Bogies: a dark frame with two wheels each.
        for f in (rear + length * 0.18, front - length * 0.18):
            bogie = Shell(sketch, frame, part, half * 0.85)
            bogie.sweep(_box(f - 1.1, f + 1.1, 0.3, 0.75), DARK)
            for axle in (f - 0.65, f + 0.65):
                bogie.tyres(axle, 0.42, 0.15)
                bogie.wheel_face(axle, 0.42, (120, 105, 95), 6)
        if k < count - 1:
            link = Shell(sketch, frame, part, half * 0.8)
            link.sweep(
                _box(front - 0.02, front + gap + 0.02, floor + 0.1, high - 0.3 if kind != "freight" else 1.2),
                DARK,
            )
        if kind == "freight" and not head:
            _freight_wagon(shell, rear, front, k, rng)
            continue
        nose = {"commuter": 0.45, "tram": 0.7, "express": 2.6, "freight": 0.4}[kind]
        f_nose, r_nose = (nose if head else 0.0), (nose if tail and kind != "freight" else 0.0)
        waist = floor + 0.95
        outline = [
            (rear + (0.1 * r_nose if kind == "express" else 0), floor),
            (rear + 0.05, waist),
            (rear + r_nose + 0.05, high),
        ]
        outline += [
            (front - f_nose - 0.05, high),
            (front - 0.05, waist),
            (front - (0.1 * f_nose if kind == "express" else 0), floor),
        ]
        shell.sweep(outline, paint)
        low, top = floor + 0.95, high - 0.75
        start, end = rear + 0.5 + r_nose, front - 0.5 - f_nose
        windows = max(4, int((end - start) / 1.45))
        if kind == "freight":
            shell.side(_box(rear + 0.1, front - 0.3, floor + 0.7, floor + 1.1), band)
            for f in np.linspace(rear + 1.0, front - 3.5, 5):
                shell.side(_box(f, f + 0.75, floor + 1.5, high - 0.8), paint * 0.6)
                for u in np.linspace(floor + 1.6, high - 0.9, 4):
                    shell.side_line([(f, u), (f + 0.75, u)], 0.04, paint * 0.35)
            shell.side(_box(front - 2.0, front - 1.0, high - 1.5, high - 0.75), glass)
            shell.side(_box(front - 2.9, front - 2.2, floor + 0.2, high - 0.7), paint * 0.75)
        else:
            shell.side(_box(start - 0.2, end + 0.2, low - 0.12, top + 0.12), DARK)
            edges = np.linspace(start, end, windows + 1)
            for w in range(windows):
                a, b = edges[w] + 0.09, edges[w + 1] - 0.09
                shell.side(_box(a, b, low, top), glass)
                shell.side(
                    [(a + 0.1, low), (a + 0.4, top), (a + 0.6, top), (a + 0.3, low)],
                    np.minimum(glass * 1.5, 230),
                )
            shell.side(_box(rear + 0.05, front - 0.05, floor + 0.28, floor + 0.5), band)
            for f in (rear + length * 0.3, front - length * 0.3):
                shell.side(_box(f - 0.7, f + 0.7, floor + 0.05, top + 0.2), band * 0.85)
                shell.side_line([(f, floor + 0.05), (f, top + 0.2)], 0.05, DARK)
                for a, b in ((f - 0.55, f - 0.12), (f + 0.12, f + 0.55)):
                    shell.side(_box(a, b, low - 0.1, top), glass)
        shell.side(_box(rear + 0.05, front - 0.1, floor, floor + 0.1), DARK)
        if head:
            _train_face(
                shell, (front - f_nose - 0.05, high), (front - 0.05, waist), (front, floor), glass, band, LAMP
            )
        if tail and kind != "freight":
            _train_face(
                shell, (rear + r_nose + 0.05, high), (rear + 0.05, waist), (rear, floor), glass, band, TAIL
            )
        if k == (count - 1 if kind == "freight" else 1):
            _pantograph(sketch, frame, part, (rear + front) / 2, high)
        for f in np.linspace(rear + 0.6 + r_nose, front - 2.0 - f_nose, 2):
            roof = Shell(sketch, frame, part, half * 0.45)
            roof.sweep(_box(f, f + 1.4, high, high + 0.22), (135, 138, 142))


def _train_face(shell: Shell, top, waist, low, glass, band, lamp) -> None:
    forward = waist[0] > 0
    upper = (top, waist) if forward else (waist, top)
    lower = (waist, low) if forward else (low, waist)

    def up(t0, t1):  # fractions from the top
        return (t0, t1) if forward else (1 - t1, 1 - t0)

    shell.strip(*upper, DARK, (-0.8, 0.8), up(0.12, 0.9))
    for s in ((-0.76, -0.03), (0.03, 0.76)):
        shell.strip(*upper, glass, s, up(0.2, 0.86))
    shell.strip(*upper, (250, 170, 50), (-0.35, 0.35), up(0.04, 0.1))
    shell.strip(*lower, band, (-1, 1), up(0.0, 0.5))
    for s in (-1, 1):
        shell.strip(*lower, lamp, sorted((s * 0.85, s * 0.55)), up(0.12, 0.36))
    shell.strip(*lower, DARK, (-0.25, 0.25), up(0.62, 1.0))
    shell.strip(*lower, DARK, (-0.9, 0.9), up(0.88, 1.0))


def _freight_wagon(shell: Shell, rear: float, front: float, k: int, rng: np.random.Generator) -> None:
    color = _pick(rng, ((150, 70, 50), (60, 95, 140), (90, 110, 80), (190, 140, 60), (120, 120, 125)))
    shell.sweep(_box(rear, front, 0.75, 1.05), DARK)
    shell.half *= 0.97
    high = 3.4
    shell.sweep(_box(rear + 0.15, front - 0.15, 1.05, high), color)
    for f in np.linspace(rear + 0.2, front - 0.2, 15):
        shell.side_line([(f, 1.1), (f, high - 0.05)], 0.06, color * 0.75)
    for u in (1.1, high - 0.05):
        shell.side_line([(rear + 0.15, u), (front - 0.15, u)], 0.1, color * 0.6)
    for p, q in (((rear + 0.15, 1.05), (rear + 0.15, high)), ((front - 0.15, high), (front - 0.15, 1.05))):
        for s in (-0.6, 0.0, 0.6):
            shell.strip(p, q, color * 0.7, (s - 0.03, s + 0.03), (0.05, 0.95))


def _pantograph(sketch: Sketch, frame: Frame, part: int, f: float, high: float) -> None:
    for y in (-0.5, 0.5):
        arm = [[f - 0.5, y, high], [f + 0.45, y * 0.8, high + 0.55], [f - 0.3, y * 0.7, high + 1.05]]
        sketch.stroke(frame.world(arm), 0.06, (70, 72, 76), part)
    sketch.stroke(
        frame.world([[f - 0.3, -0.75, high + 1.05], [f - 0.3, 0.75, high + 1.05]]), 0.08, (60, 62, 66), part
    )


def draw_track(sketch: Sketch, frame: Frame, part: int, length: float) -> None:
    """Ballast, sleepers and two rails under a train, a little longer than it."""

    def near(points):
        world = frame.world(points)
        return world if world[:, 1].min() > 0.8 else None

    half = length / 2
    steps = np.linspace(-half, half, 25)
    for a, b in zip(steps[:-1], steps[1:], strict=True):
        bed = near([[a, -1.6, 0], [a, 1.6, 0], [b, 1.6, 0], [b, -1.6, 0]])
        if bed is not None:
            sketch.polygon(bed, (122, 112, 102), part)
    for f in np.arange(-half + 0.3, half, 0.9):
        sleeper = near([[f, -1.25, 0.02], [f, 1.25, 0.02], [f + 0.28, 1.25, 0.02], [f + 0.28, -1.25, 0.02]])
        if sleeper is not None:
            sketch.polygon(sleeper, (82, 66, 54), part)
    for y in (-0.72, 0.72):
        for a, b in zip(steps[:-1], steps[1:], strict=True):
            rail = near([[a, y, 0.12], [b, y, 0.12]])
            if rail is not None:
                sketch.stroke(rail, 0.09, (170, 168, 168), part)


# Length, width and height in metres, for placing.
SIZES = {
    "car": (4.4, 1.9, 1.55),
    "truck": (9.0, 2.6, 3.2),
    "bus": (11.4, 2.6, 3.5),
    "train": (19.0, 2.9, 4.2),
}
DRAWERS = {"car": draw_car, "truck": draw_truck, "bus": draw_bus, "train": draw_train}
