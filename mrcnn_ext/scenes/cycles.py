"""Bicycles and motorcycles, with or without a rider."""

from __future__ import annotations

import numpy as np

from .figure import Body, DrawnKeypoints, Look, Skeleton, draw_figure
from .geometry import Frame, circle
from .sketch import Sketch

PAINTS = (
    (190, 30, 35),
    (30, 80, 170),
    (25, 120, 70),
    (235, 180, 40),
    (40, 40, 45),
    (230, 230, 230),
    (220, 100, 30),
    (120, 190, 200),
    (150, 60, 140),
)
_F, _L, _U = np.eye(3)


def _wheel(
    sketch, frame, hub, radius, tyre, spokes, part, slot, rim=(165, 165, 170), steer=0.0, roll=0.0
) -> None:
    ahead = np.array([np.cos(steer), np.sin(steer), 0.0])
    ring = frame.world(circle(hub, radius - tyre / 2, ahead, _U, 36))
    sketch.area(frame.world(circle(hub, radius, ahead, _U, 36)), slot)
    center = frame.world(hub)[0]
    inner = frame.world(circle(hub, radius - tyre * 1.1, ahead, _U, 36))
    for angle in np.linspace(0, np.pi, spokes, endpoint=False) + 0.2 - roll:
        arm = (np.cos(angle) * ahead + np.sin(angle) * _U) * (radius - tyre)
        sketch.stroke(frame.world([hub - arm, hub + arm]), 0.008, (150, 150, 155), part)
    sketch.stroke(inner, 0.022, rim, part, closed=True)
    sketch.stroke(ring, tyre, (28, 28, 30), part, closed=True)
    sketch.blob([(center, 0.035)], (90, 90, 95), part, shaded=False)


def draw_bicycle(
    sketch: Sketch,
    frame: Frame,
    rng: np.random.Generator,
    slot: int,
    pedalled: float = 0.0,
    rolled: float = 0.0,
) -> dict:
    """
    Draws a bicycle as the instance in `slot`; returns where its rider's hips, hands and feet go.

    Args:
        rng: what it looks like; with the same state it is the same bicycle.
        pedalled, rolled: how far its cranks and its wheels have turned, in radians.
    """
    part = sketch.part(slot)
    paint = np.array(PAINTS[int(rng.integers(len(PAINTS)))], dtype=np.float64)
    dark = (40, 40, 45)
    step_through = rng.random() < 0.35
    sport = not step_through and rng.random() < 0.4
    steer = float(rng.normal(0, 0.06))
    rear, front = np.array([-0.52, 0, 0.34]), np.array([0.56, 0, 0.34])
    crank, seat = np.array([-0.06, 0, 0.3]), np.array([-0.22, 0, 0.83])
    head, fork = np.array([0.36, 0, 0.88]), np.array([0.42, 0, 0.68])
    saddle = np.array([-0.24, 0, 0.95])
    grip = np.array([0.5, 0, 0.86]) if sport else np.array([0.3, 0, 1.04])
    spin = float(rng.uniform(0, 2 * np.pi)) - pedalled
    pedal = {
        s: crank + 0.17 * np.array([np.cos(spin + p), 0, np.sin(spin + p)]) + [0, y, 0]
        for s, p, y in (("L", 0.0, 0.12), ("R", np.pi, -0.12))
    }
    thick = 0.05

    def tube(*points, width=thick, color=paint):
        sketch.stroke(frame.world(points), width, color, part)

    def depth(point):
        return float(frame.world(point)[0][1])

    sketch.at(depth(rear) + 0.01)
    _wheel(sketch, frame, rear, 0.345, 0.045, 12, part, slot, roll=rolled)
    sketch.stroke(frame.world(circle(rear, 0.375, _F, _U, 36)[4:17]), 0.03, paint * 0.8, part)
    sketch.at(depth(front) + 0.01)
    _wheel(sketch, frame, front, 0.345, 0.045, 12, part, slot, steer=steer, roll=rolled)
    tube(head, fork, front, width=0.042)
    sketch.at(depth(crank))
    far, near = sorted("LR", key=lambda s: -depth(pedal[s]))
    side = 1 if far == "L" else -1
    tube(crank + [0, side * 0.06, 0], pedal[far], width=0.03, color=dark)
    tube(pedal[far] - [0.05, 0, 0], pedal[far] + [0.05, 0, 0], width=0.035, color=dark)
    tube(crank, rear, width=0.03)
    tube(seat, rear, width=0.03)
    if step_through:
        tube(seat * 0.55 + crank * 0.45, [0.1, 0, 0.5], fork)
        tube(crank, [0.12, 0, 0.4], fork)
    else:
        tube(seat - [0.0, 0, 0.04], head)
        tube(crank, fork)
    tube(crank, saddle - [0, 0, 0.04])
    tube(head, fork, width=0.055)
    sketch.stroke(frame.world(circle(crank, 0.09, _F, _U, 20)), 0.02, dark, part, closed=True)
    tube(crank + [0, 0, 0.08], rear + [0, 0, 0.04], width=0.012, color=dark)
    tube(crank - [0, 0, 0.08], rear - [0, 0, 0.04], width=0.012, color=dark)
    sketch.at(depth(crank) - 0.02)
    tube(crank - [0, side * 0.06, 0], pedal[near], width=0.03, color=dark)
    tube(pedal[near] - [0.05, 0, 0], pedal[near] + [0.05, 0, 0], width=0.035, color=dark)
    sketch.at(depth(saddle))
    if rng.random() < 0.4:
        tube([-0.7, 0, 0.73], [-0.3, 0, 0.73], width=0.03, color=dark)
        tube([-0.62, 0, 0.73], rear, width=0.02, color=dark)
    sketch.blob(
        [(frame.world(saddle - [0.11, y, 0])[0], 0.045) for y in (-0.05, 0.05)]
        + [(frame.world(saddle + [0.13, 0, 0])[0], 0.025)],
        (45, 35, 30),
        part,
    )
    sketch.at(depth(head))
    if not sport and rng.random() < 0.35:
        basket = [(0.42, 0.78), (0.72, 0.78), (0.78, 1.02), (0.4, 1.02)]
        sketch.extruded(frame, basket, 0.16, (150, 115, 70), part)
        for u in (0.84, 0.92):
            sketch.stroke(frame.world([[0.42, 0.16, u], [0.75, 0.16, u]]), 0.012, (105, 75, 45), part)
    stem = grip + [-0.02, 0, 0]
    tube(head, stem, width=0.035, color=dark)
    hands = {}
    for s, y in (("L", 1), ("R", -1)):
        end = grip + np.array([-0.07 if not sport else 0.05, 0.27 * y, 0])
        tube(stem, grip + [0.03, 0.16 * y, 0.01], end, width=0.03, color=dark)
        if sport:
            tube(end, end + [0.06, 0, -0.1], end + [-0.06, 0, -0.14], width=0.03, color=dark)
        hands[s] = end + [-0.01, 0, 0.02]
    sketch.blob([(frame.world([0.47, 0, 0.84])[0], 0.035)], (250, 245, 220), part, shaded=False)
    feet = {s: pedal[s] + np.array([-0.05, -0.01, 0.09]) for s in "LR"}
    return {"hips": saddle + [0.02, 0, 0.09], "lean": 38 if sport else 14, "hands": hands, "feet": feet}


def draw_motorcycle(sketch: Sketch, frame: Frame, rng: np.random.Generator, slot: int) -> dict:
    """Draws a motorcycle or scooter as the instance in `slot`; returns where its rider goes."""
    part = sketch.part(slot)
    paint = np.array(PAINTS[int(rng.integers(len(PAINTS)))], dtype=np.float64)
    kind = ("naked", "sport", "scooter", "cruiser")[int(rng.choice(4, p=(0.3, 0.25, 0.25, 0.2)))]
    radius, tyre = (0.24, 0.1) if kind == "scooter" else (0.32, 0.13)
    rear, front = np.array([-0.68, 0, radius]), np.array([0.7, 0, radius])
    if kind == "cruiser":
        front = np.array([0.9, 0, radius])
    chrome, dark, black = (195, 198, 205), (55, 57, 62), (30, 30, 33)

    def depth(f, u=0.6):
        return float(frame.world([f, 0, u])[0][1])

    def tube(*points, width, color):
        sketch.stroke(frame.world(points), width, color, part)

    def wheel(hub):
        half = tyre / 2
        balls = [
            (p, 0.012)
            for y in (-half, half)
            for p in frame.world(circle(hub + [0, y, 0], radius - 0.01, _F, _U, 28))
        ]
        sketch.blob(balls, black, part, shaded=False)
        near = min((-half, half), key=lambda y: np.linalg.norm(frame.world(hub + [0, y, 0])[0]))
        disc = frame.world(circle(hub + [0, near, 0], radius * 0.64, _F, _U, 28))
        sketch.polygon(disc, (120, 122, 128), part)
        for a in np.linspace(0, 2 * np.pi, 5, endpoint=False):
            arm = (np.cos(a) * _F + np.sin(a) * _U) * radius * 0.62
            tube(hub + [0, near, 0], hub + arm + [0, near, 0], width=0.045, color=(60, 62, 66))
        sketch.polygon(
            frame.world(circle(hub + [0, near, 0], radius * 0.3, _F, _U, 20)), (165, 168, 172), part
        )

    near_side = 1 if frame.world([0, 1, 0])[0][1] < frame.world([0, -1, 0])[0][1] else -1
    sketch.at(depth(rear[0]) + 0.02)
    wheel(rear)
    sketch.at(depth(front[0]) + 0.02)
    wheel(front)
    bars = np.array([0.38, 0, 1.05]) if kind != "sport" else np.array([0.45, 0, 0.88])
    if kind == "cruiser":
        bars = np.array([0.25, 0, 1.15])
    if kind == "scooter":
        bars = np.array([0.42, 0, 1.02])
    for y in (-0.07, 0.07):
        tube(front + [0, y, 0], bars + [0.06, y, -0.12], width=0.05, color=chrome)
    fender = circle(front, radius + 0.04, _F, _U, 36)[3:14]
    for y in (-0.05, 0.05):
        sketch.stroke(frame.world(fender + [0, y, 0]), 0.07, paint * 0.9, part)

    sketch.at(depth(0.0))
    if kind == "scooter":
        sketch.extruded(
            frame, [(-0.9, 0.55), (-0.75, 0.75), (-0.1, 0.72), (-0.15, 0.3), (-0.6, 0.3)], 0.17, paint, part
        )
        sketch.extruded(
            frame, [(-0.2, 0.25), (-0.2, 0.34), (0.45, 0.34), (0.45, 0.25)], 0.17, paint * 0.8, part
        )
        sketch.extruded(
            frame, [(0.4, 0.28), (0.32, 0.95), (0.42, 1.0), (0.58, 0.6), (0.5, 0.28)], 0.18, paint, part
        )
        sketch.extruded(frame, [(-0.85, 0.76), (-0.8, 0.84), (-0.15, 0.82), (-0.12, 0.74)], 0.14, black, part)
        hips, lean, foot = np.array([-0.35, 0, 0.92]), 4, np.array([0.18, 0.13, 0.42])
    else:
        sketch.extruded(
            frame, [(-0.35, 0.3), (-0.3, 0.62), (0.3, 0.66), (0.42, 0.4), (0.25, 0.24)], 0.16, dark, part
        )
        for u in (0.42, 0.48, 0.54):
            y = near_side * 0.165
            sketch.stroke(frame.world([[-0.05, y, u], [0.3, y, u + 0.02]]), 0.025, (150, 152, 158), part)
        disc = frame.world(circle([-0.12, near_side * 0.165, 0.4], 0.1, _F, _U, 20))
        sketch.polygon(disc, (140, 142, 148), part)
        y = near_side * 0.2
        tube([0.3, y, 0.35], [0.1, y, 0.24], [-0.35, y, 0.3], width=0.06, color=chrome)
        tube([-0.35, y, 0.3], [-0.95, y, 0.42], width=0.1, color=chrome)
        tail = 0.92 if kind == "sport" else 0.8
        sketch.extruded(
            frame, [(-0.2, 0.72), (-0.85, tail - 0.02), (-0.95, tail + 0.04), (-0.2, 0.84)], 0.13, black, part
        )
        if kind == "sport":
            sketch.extruded(
                frame, [(-0.2, 0.3), (-0.1, 0.75), (0.7, 0.95), (0.85, 0.75), (0.45, 0.3)], 0.19, paint, part
            )
            sketch.extruded(frame, [(0.5, 0.92), (0.62, 1.12), (0.82, 0.88)], 0.14, (150, 175, 190), part)
            hips, lean, foot = np.array([-0.42, 0, 0.98]), 38, np.array([-0.28, 0.17, 0.48])
        else:
            hips, lean, foot = np.array([-0.35, 0, 0.92]), 10, np.array([0.05, 0.2, 0.42])
            if kind == "cruiser":
                hips, lean, foot = np.array([-0.35, 0, 0.86]), -4, np.array([0.45, 0.2, 0.42])
        sketch.extruded(
            frame, [(-0.22, 0.76), (-0.05, 0.95), (0.28, 0.97), (0.4, 0.78), (0.2, 0.68)], 0.16, paint, part
        )
        sketch.stroke(
            frame.world([[-0.08, near_side * 0.165, 0.84], [0.3, near_side * 0.165, 0.86]]),
            0.04,
            np.minimum(paint * 0.4 + 140, 250),
            part,
        )
        sketch.stroke(frame.world(circle(rear, radius + 0.05, _F, _U, 36)[8:17]), 0.12, paint * 0.85, part)
    sketch.at(depth(-0.9))
    if not _sees(sketch, frame, (1, 0, 0)):
        tail = [(-0.97, y, u) for y, u in ((-0.07, 0.74), (0.07, 0.74), (0.07, 0.82), (-0.07, 0.82))]
        sketch.polygon(frame.world(tail), (225, 30, 30), part)
        plate = [(-1.0, y, u) for y, u in ((-0.09, 0.52), (0.09, 0.52), (0.09, 0.66), (-0.09, 0.66))]
        sketch.polygon(frame.world(plate), (240, 240, 225), part)
    sketch.at(depth(0.6) - 0.05)
    hands = {}
    for s, y in (("L", 1), ("R", -1)):
        end = bars + np.array([-0.08, 0.36 * y, 0.0])
        tube(bars, bars + [0.02, 0.15 * y, 0.02], end, width=0.04, color=dark)
        tube(end, end + [0.02, -0.1 * y, 0], width=0.06, color=black)
        mirror = end + np.array([0.06, 0.04 * y, 0.2])
        tube(end + [0.02, -0.08 * y, 0], mirror, width=0.02, color=black)
        sketch.blob(
            [(frame.world(mirror + [0, d, 0])[0], 0.04) for d in (-0.04, 0.04)], black, part, shaded=False
        )
        hands[s] = end + [0, -0.03 * y, 0.02]
    lamp = np.array([0.62, 0, 0.86]) if kind != "scooter" else np.array([0.5, 0, 1.0])
    if kind == "cruiser":
        lamp = np.array([0.5, 0, 0.92])
    sketch.blob([(frame.world(lamp)[0], 0.1)], chrome if kind != "sport" else paint, part)
    if _sees(sketch, frame, (1, 0, 0)):
        sketch.polygon(frame.world(circle(lamp + [0.08, 0, 0], 0.085, _L, _U, 20)), (255, 250, 225), part)
    feet = {s: foot * [1, y, 1] for s, y in (("L", 1), ("R", -1))}
    return {"hips": hips, "lean": lean, "hands": hands, "feet": feet}


def _sees(sketch, frame, direction) -> bool:
    to_camera = np.array([0.0, 0.0, sketch.camera.height]) - frame.origin
    return float(np.dot(frame.direction(direction), to_camera)) > 0


def draw_rider(
    sketch: Sketch, frame: Frame, rng: np.random.Generator, place: dict, vehicle: str, slot: int
) -> DrawnKeypoints:
    """Draws a figure on what `draw_bicycle` or `draw_motorcycle` returned, as the instance in `slot`."""
    body = Body(float(rng.uniform(0.95, 1.06)), float(rng.uniform(0.9, 1.2)))
    skeleton = Skeleton.riding(
        body, place["hips"], place["lean"], place["hands"], place["feet"], float(rng.normal(0, 14))
    )
    return draw_figure(sketch, frame, skeleton, Look.sample(rng, vehicle), slot)
