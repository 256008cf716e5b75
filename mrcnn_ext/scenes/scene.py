"""Placing the actors of a scene."""

from __future__ import annotations

import cv2
import numpy as np

from .cycles import draw_bicycle, draw_motorcycle, draw_rider
from .figure import Body, DrawnKeypoints, Look, Skeleton, draw_figure, sample_pose
from .geometry import Camera, Frame, Light
from .painting import ACTOR_SIZES, Actor, Instance, Scene, compose, measure, visible_lamps
from .sketch import Sketch
from .spec import ACTORS, STUFF, ScenePreset
from .street import FURNITURE, Backdrop, Road, draw_bench
from .vehicles import DRAWERS, SIZES, draw_track

_CATEGORIES_OF = {"cyclist": ("bicycle", "rider"), "biker": ("motorcycle", "rider")}


def generate_scene(preset: ScenePreset, seed: int, index: int) -> Scene:
    """
    One scene. The same arguments give the same scene in any process, whatever was drawn before (on another
    machine too, with the same numpy and OpenCV).

    Args:
        preset: see `get_preset`.
        seed, index: non-negative; scenes of different indices are independent.
    """
    rng = np.random.default_rng([int(seed), int(index)])
    camera = _sample_camera(preset, rng)
    time = str(
        rng.choice(("night", "dusk", "day"), p=(preset.night, preset.dusk, 1 - preset.night - preset.dusk))
    )
    light = Light.sample(rng, time)
    road = Road.sample(rng)
    actors: list[Actor] = []
    if rng.random() >= preset.empty:
        count = max(1, int(rng.integers(preset.actors[0], preset.actors[1] + 1)))
        if rng.random() < preset.crowd:
            actors.append(_crowd(preset, camera, light, rng))
        for _ in range(count):
            actor = _place(preset, camera, light, road, rng, actors)
            if actor is not None:
                actors.append(actor)
    for _ in range(int(rng.integers(0, preset.furniture + 1))):
        piece = _furnish(preset, camera, light, road, rng, actors)
        if piece is not None:
            actors.append(piece)
    actors.sort(key=lambda a: -a.frame.origin[1])
    clear = [(*a.sketch.bounds()[::2], a.far) for a in actors if a.instances]
    backdrop = Backdrop(camera, light, road, clear, rng)
    return _paint(preset, camera, light, backdrop, actors, rng)


def _sample_camera(preset: ScenePreset, rng: np.random.Generator) -> Camera:
    h, w = preset.height, preset.width
    return Camera(
        focal=float(h * rng.uniform(1.5, 2.2)),
        center=float(w * rng.uniform(0.4, 0.6)),
        horizon=float(h * rng.uniform(0.3, 0.48)),
        height=float(rng.uniform(1.3, 3.0)),
        image_height=h,
        image_width=w,
    )


def _place(preset, camera, light, road, rng, actors) -> Actor | None:
    """An actor of a random kind where it meets the preset's limits; None if no place was found."""
    weights = np.array([preset.weights.get(kind, 0.0) for kind in ACTORS], dtype=np.float64)
    kind = ACTORS[int(rng.choice(len(ACTORS), p=weights / weights.sum()))]
    for attempt in range(16):
        yaw = _sample_yaw(kind, preset.facing, rng)
        length, width, height = ACTOR_SIZES[kind]
        across = length * abs(np.cos(yaw)) + width * abs(np.sin(yaw))
        along = length * abs(np.sin(yaw)) + width * abs(np.cos(yaw))
        high = preset.size[1] * (preset.width if across > height else preset.height)
        target = float(np.exp(rng.uniform(np.log(preset.size[0]), np.log(high))))
        depth = camera.focal * max(across, height) / target
        if depth - along / 2 < 1.2:
            depth = 1.2 + along / 2
        # Without limits on truncation the centre may lie beyond the border.
        reach = 0.5 + (1 - preset.min_inside) * 0.35 * across * camera.scale_at(depth) / preset.width
        x = (camera.image_width * rng.uniform(0.5 - reach, 0.5 + reach) - camera.center) / camera.scale_at(
            depth
        )
        if kind in ("car", "truck", "bus", "motorcycle", "biker") and rng.random() < 0.5:
            x = road.center + rng.uniform(-0.8, 0.8) * road.half
        if attempt < 8 and abs(x - road.center) + 0.4 * across > road.half + road.walk + 1.5:
            continue  # rather in the street than between the houses
        box = _expected_box(camera, x, depth, across, along, height)
        if _fits(preset, box, [a.box for a in actors]):
            return _build(kind, Frame(x, depth, yaw), camera, light, rng)
    return None


def _sample_yaw(kind: str, facing: float, rng: np.random.Generator) -> float:
    if kind == "person":
        return float(-np.pi / 2 + np.radians(rng.uniform(-facing, facing)))
    # Across the view, along it, or at an angle.
    base = float(rng.choice((0.0, np.pi, -np.pi / 2, np.pi / 2), p=(0.3, 0.3, 0.22, 0.18)))
    spread = 0.5 if rng.random() < 0.5 else 0.12
    if kind == "train":
        base = float(rng.choice((0.0, np.pi, -np.pi / 2, np.pi / 2), p=(0.3, 0.3, 0.3, 0.1)))
        spread = 0.35 if base in (0.0, np.pi) else 0.3
    return base + float(rng.uniform(-spread, spread))


def _expected_box(camera, x, depth, across, along, height):
    near = max(depth - along / 2, 0.8)
    corners = [
        (x + sx * across / 2, y, z)
        for sx in (-1, 1)
        for y in (near, depth + along / 2)
        for z in (0.0, height)
    ]
    pixels = camera.project(corners)
    return (*pixels.min(0), *pixels.max(0))


def _area(box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _cut(a, b):
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _fits(preset, box, others) -> bool:
    image = (0, 0, preset.width, preset.height)
    if _area(_cut(box, image)) < preset.min_inside * _area(box):
        return False
    if max(box[2] - box[0], box[3] - box[1]) < 0.8 * preset.size[0]:
        return False
    for other in others:
        shared = _area(_cut(box, other))
        if shared > preset.max_overlap * min(_area(box), _area(other)):
            return False
    return True


def _build(kind, frame, camera, light, rng) -> Actor:
    sketch = Sketch(camera, light)
    actor = Actor(kind, frame, (0, 0, 0, 0), sketch)
    depth = float(frame.origin[1])
    for category in _CATEGORIES_OF.get(kind, (kind,)):
        actor.instances.append(Instance(category, False, depth))
    if kind == "person":
        actor.keypoints[1] = _draw_person(sketch, frame, rng)
        points = actor.keypoints[1].points
        actor.shadow = np.concatenate([points, frame.world([[0, 0.2, 0], [0, -0.2, 0]])])
    elif kind in ("cyclist", "bicycle"):
        place = draw_bicycle(sketch, frame, rng, 1)
        if kind == "cyclist":
            actor.keypoints[2] = draw_rider(sketch, frame, rng, place, "bicycle", 2)
    elif kind in ("biker", "motorcycle"):
        place = draw_motorcycle(sketch, frame, rng, 1)
        if kind == "biker":
            actor.keypoints[2] = draw_rider(sketch, frame, rng, place, "motorcycle", 2)
    else:
        if kind == "train":
            sketch.at(1e4)
            draw_track(sketch, frame, sketch.part(stuff=STUFF["rail track"]), 36.0)
        DRAWERS[kind](sketch, frame, rng, 1)
        length, width, _ = SIZES[kind]
        for side in (-0.35, 0.35):
            if kind != "train":
                actor.lamps.append(
                    (
                        frame.world([length / 2, side * width, 0.7])[0],
                        (255, 245, 210),
                        frame.direction([1, 0, 0]),
                    )
                )
                actor.lamps.append(
                    (
                        frame.world([-length / 2, side * width, 0.8])[0],
                        (255, 40, 40),
                        frame.direction([-1, 0, 0]),
                    )
                )
    if actor.shadow is None:
        length, width, height = ACTOR_SIZES[kind]
        if kind in ("cyclist", "biker"):
            height = 1.6
        actor.shadow = frame.world(
            [
                (f * length / 2 * 0.95, s * width / 2, u)
                for f in (-1, 1)
                for s in (-1, 1)
                for u in (0, height * 0.9)
            ]
        )
    actor.box = sketch.bounds() if kind != "train" else _expected_train_box(camera, frame)
    return actor


def _expected_train_box(camera, frame):
    length, width, height = SIZES["train"]
    corners = frame.world(
        [(f * length / 2, s * width / 2, u) for f in (-1, 1) for s in (-1, 1) for u in (0, height)]
    )
    pixels = camera.project(corners)
    return (*pixels.min(0), *pixels.max(0))


def _draw_person(sketch, frame, rng) -> DrawnKeypoints:
    name, pose = sample_pose(rng)
    body = Body.sample(rng)
    if name == "sitting":
        draw_bench(sketch, frame, sketch.part(stuff=STUFF["static"]), 0.42 * body.scale)
    return draw_figure(sketch, frame, Skeleton(body, pose), Look.sample(rng), 1)


def _crowd(preset, camera, light, rng) -> Actor:
    """Many small overlapping figures, or a row of parked bicycles, annotated as one region."""
    bicycles = rng.random() < 0.2
    size = float(preset.height * rng.uniform(0.05, 0.12)) + 6
    depth = camera.focal * 1.7 / size
    scale = camera.scale_at(depth)
    x = (camera.image_width * rng.uniform(0.15, 0.85) - camera.center) / scale
    sketch = Sketch(camera, light)
    count = int(rng.integers(8, 22))
    spread = count * (0.22 if not bicycles else 0.3)
    frame = Frame(x, depth, 0.0)
    actor = Actor("crowd", frame, (0, 0, 0, 0), sketch)
    actor.instances.append(Instance("bicycle" if bicycles else "person", True, depth))
    spots = sorted(
        ((rng.uniform(-spread, spread) / 2, rng.uniform(-1.2, 1.2)) for _ in range(count)),
        key=lambda s: -s[1],
    )
    for dx, dy in spots:
        if bicycles:
            draw_bicycle(sketch, Frame(x + dx, depth + dy * 0.1, rng.uniform(1.0, 1.4)), rng, 1)
            continue
        member = Frame(x + dx, depth + dy, float(rng.uniform(-np.pi, np.pi)))
        _, pose = sample_pose(rng)
        pose.seat = None
        draw_figure(sketch, member, Skeleton(Body.sample(rng), pose), Look.sample(rng), 1)
    actor.box = sketch.bounds()
    actor.shadow = frame.world([(dx, dy, u) for dx, dy in spots for u in (0, 1.5)])
    return actor


def _furnish(preset, camera, light, road, rng, actors) -> Actor | None:
    draw = FURNITURE[int(rng.choice(len(FURNITURE), p=(0.3, 0.2, 0.2, 0.15, 0.15)))]
    for _ in range(4):
        depth = float(np.exp(rng.uniform(np.log(4), np.log(45))))
        side = float(rng.choice((-1, 1)))
        x = road.center + side * (road.half + rng.uniform(0.4, road.walk))
        sketch = Sketch(camera, light)
        draw(sketch, Frame(x, depth, 0.0 if side < 0 else np.pi), rng)
        box = sketch.bounds()
        # What stands in front must not hide more than the preset allows.
        hidden = [
            _area(_cut(box, a.box)) > 0.8 * preset.max_overlap * _area(a.box)
            for a in actors
            if a.frame.origin[1] > depth
        ]
        if not any(hidden):
            return Actor("furniture", Frame(x, depth, 0.0), box, sketch)
    return None


def _paint(preset, camera, light, backdrop, actors, rng) -> Scene:
    image, labels = backdrop.image, backdrop.labels
    instance_map, instances, drawn = compose(camera, light, image, labels, actors, rng)
    lamps = visible_lamps(camera, actors, instance_map, instances)
    kept = measure(preset, instances, instance_map, labels, drawn)
    return Scene(_expose(preset, light, image, lamps, rng), kept, instance_map, labels)


def _expose(preset, light, image, lamps, rng) -> np.ndarray:
    """From drawn colours to the picture: light, glow of lamps, blur, noise."""
    h, w = image.shape[:2]
    out = image * np.array(light.tint, np.float32)
    if light.time != "day":
        glow = np.zeros_like(out)
        for (x, y), radius, color in lamps:
            for size, strength in ((1.0, 0.8), (2.0, 0.2)):
                center, reach = (int(x), int(y)), max(1, int(radius * size * 0.6))
                cv2.circle(glow, center, reach, tuple(strength * c for c in color), -1, cv2.LINE_AA)
        out += cv2.GaussianBlur(glow, (0, 0), max(1.0, h / 90))
    if rng.random() < 0.4:
        # A gradient of brightness over the picture, as of a low sun or a dirty lens.
        angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
        ramp = np.cos(angle) * np.linspace(-1, 1, w)[None, :] + np.sin(angle) * np.linspace(-1, 1, h)[:, None]
        out *= (1 + depth * ramp / 1.4).astype(np.float32)[:, :, None]
    contrast = rng.uniform(0.9, 1.1)
    out = (out - 110) * contrast + 110
    sigma = rng.uniform(0, preset.blur)
    if sigma > 0.25:
        out = cv2.GaussianBlur(out, (0, 0), sigma)
    noise = rng.uniform(0.3, 1.0) * preset.noise * (1.3 if light.time == "night" else 1.0)
    out += rng.normal(0, 1, out.shape).astype(np.float32) * noise
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)
