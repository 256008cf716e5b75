"""Short clips of people who walk, ride and wave, seen by a camera that moves, with all that makes video hard."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .clip_camera import CameraPath, Exposure
from .cycles import draw_bicycle, draw_motorcycle, draw_rider
from .figure import Body, Look, Skeleton, draw_figure
from .geometry import Camera, Light
from .motion import ACTIONS, Motion, Path
from .painting import ACTOR_SIZES, Actor, Instance, Scene, compose, measure, paint_colors
from .sketch import Sketch
from .spec import changed_preset, check_common_keys
from .street import FURNITURE, Backdrop, Road, draw_board
from .vehicles import DRAWERS

# Part of every dataset's record. Raise it whenever the same (preset, seed, index) gives other frames.
CLIP_VERSION = 1
_KINDS = {"cycling": ("cyclist", ("bicycle", "rider")), "motorcycling": ("biker", ("motorcycle", "rider"))}
_MOST_EXPOSURES = 7  # pictures averaged for one blurred frame
_BLUR_STEP = 3.0  # pixels between two of them, about


@dataclass(frozen=True)
class ClipPreset:
    """
    How clips look and how hard they are.

    Attributes:
        name: what the dataset's record calls it.
        height, width: size of the frames in pixels.
        frames: frames of a clip.
        rate: frames per second.
        people: least and greatest number of people of a clip.
        weights: relative frequency of each of `motion.ACTIONS`.
        size: least and greatest height of an adult as a fraction of the frame's.
        occluders: least and greatest number of things that stand before somebody.
        traffic: fraction of the clips in which a car drives by, before or behind them.
        blur: fraction of the clips with motion blur.
        shutter: least and greatest exposure time where there is, as a fraction of the time between frames.
        camera: fraction of the clips whose camera moves; half of them follow somebody.
        exposure: fraction of the clips whose brightness changes.
        night, dusk: fraction of the clips of that light; the rest is day.
        noise: greatest standard deviation of the sensor noise, in grey levels.
        lens: greatest standard deviation of the lens blur, in pixels.
        min_visible: who shows a smaller fraction is left without annotation in that frame.
        min_area: the same in pixels.
    """

    name: str
    height: int = 192
    width: int = 192
    frames: int = 8
    rate: float = 12.0
    people: tuple[int, int] = (1, 3)
    weights: dict[str, float] = field(
        default_factory=lambda: {
            "walking": 30,
            "running": 12,
            "waving": 18,
            "jumping": 10,
            "squatting": 8,
            "pointing": 6,
            "cycling": 12,
            "motorcycling": 4,
        }
    )
    size: tuple[float, float] = (0.4, 0.85)
    occluders: tuple[int, int] = (0, 2)
    traffic: float = 0.1
    blur: float = 0.5
    shutter: tuple[float, float] = (0.4, 1.0)
    camera: float = 0.6
    exposure: float = 0.4
    night: float = 0.05
    dusk: float = 0.15
    noise: float = 6.0
    lens: float = 0.8
    min_visible: float = 0.05
    min_area: int = 24

    def __post_init__(self):
        for key, least in (("height", 32), ("width", 32), ("frames", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}, got {getattr(self, key)}")
        if not 0 < self.rate:
            raise ValueError(f"rate must be frames per second above 0, got {self.rate}")
        for key in ("people", "occluders", "size", "shutter"):
            low, high = getattr(self, key)
            if not 0 <= low <= high:
                raise ValueError(f"{key} must be (least, greatest) in rising order, got {getattr(self, key)}")
        if self.size[0] < 0.1:
            raise ValueError(f"size must begin at 0.1 of the frame's height or above, got {self.size}")
        for key in ("traffic", "blur", "camera", "exposure", "night", "dusk"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is a fraction of the clips, 0 to 1, got {getattr(self, key)}")
        check_common_keys(self, "actions", ACTIONS, "clips")
        for key in ("noise", "lens"):
            if not getattr(self, key) >= 0:
                raise ValueError(f"{key} is a standard deviation, 0 or more, got {getattr(self, key)}")
        if not 0 <= self.min_visible <= 1:
            raise ValueError(f"min_visible is a fraction of a person, 0 to 1, got {self.min_visible}")


CLIP_PRESETS = {
    "clips": ClipPreset("clips"),
    # Nothing but the motion of one person.
    "clean": ClipPreset(
        "clean",
        people=(1, 1),
        occluders=(0, 0),
        traffic=0.0,
        blur=0.0,
        camera=0.0,
        exposure=0.0,
        night=0.0,
        noise=3.0,
        lens=0.3,
    ),
    # Blur, occlusion, and changes of light in every clip.
    "hard": ClipPreset(
        "hard",
        people=(1, 3),
        occluders=(1, 3),
        traffic=0.15,
        blur=1.0,
        shutter=(0.7, 1.0),
        camera=0.8,
        exposure=0.7,
    ),
}


def get_clip_preset(name: str, **overrides) -> ClipPreset:
    """
    Args:
        name: "clips", "clean" (one person, nothing that makes it hard) or "hard" (blur and occlusion in each).
        overrides: fields of `ClipPreset` to change.

    Raises:
        ValueError: an unknown name or field, or a value out of range.
    """
    return changed_preset(CLIP_PRESETS, "clip preset", name, overrides)


@dataclass
class Clip:
    """
    Attributes:
        scenes: one `Scene` a frame; `track` of its instances says who is the same from frame to frame.
        conditions: what makes it hard: "actions" (of the people, by name), "shutter" (fraction of the time between
            frames, 0 without motion blur), "occluders" (number), "camera" ("still", "following", "panning") and
            "gains" (brightness of each frame).
    """

    scenes: list[Scene]
    conditions: dict


@dataclass
class _Player:
    """Who takes part in a clip: built anew for every moment, always from the same random numbers."""

    kind: str
    path: Path
    seed: list[int]
    motion: Motion | None = None
    first_track: int = 0
    draw: object = None  # of street furniture

    def build(self, camera: Camera, light: Light, t: float) -> Actor:
        rng = np.random.default_rng(self.seed)
        frame = self.path.frame(t)
        sketch = Sketch(camera, light)
        actor = Actor(self.kind, frame, (0, 0, 0, 0), sketch)
        if self.draw is not None:
            self.draw(sketch, frame, rng)
            return actor
        categories = {"person": ("person",), "car": ("car",)} | dict(_KINDS.values())
        depth = float(frame.origin[1])
        for slot, category in enumerate(categories[self.kind]):
            actor.instances.append(Instance(category, False, depth, track=self.first_track + slot))
        if self.kind == "person":
            body, look = Body.sample(rng), Look.sample(rng)
            frame.origin[2] += self.motion.hop(t)
            actor.keypoints[1] = draw_figure(sketch, frame, Skeleton(body, self.motion.pose(t)), look, 1)
            actor.shadow = actor.keypoints[1].points
            return actor
        if self.kind == "cyclist":
            place = draw_bicycle(sketch, frame, rng, 1, self.motion.pedalled(t), self.motion.rolled(t))
            actor.keypoints[2] = draw_rider(sketch, frame, rng, place, "bicycle", 2)
        elif self.kind == "biker":
            place = draw_motorcycle(sketch, frame, rng, 1)
            actor.keypoints[2] = draw_rider(sketch, frame, rng, place, "motorcycle", 2)
        else:
            DRAWERS[self.kind](sketch, frame, rng, 1)
        length, width, height = ACTOR_SIZES[self.kind]
        actor.shadow = frame.world(
            [
                (f * length * 0.47, s * width / 2, u)
                for f in (-1, 1)
                for s in (-1, 1)
                for u in (0, height * 0.9)
            ]
        )
        return actor


def generate_clip(preset: ClipPreset, seed: int, index: int) -> Clip:
    """
    One clip. The same arguments give the same clip in any process, whatever was drawn before.

    Args:
        preset: see `get_clip_preset`.
        seed, index: non-negative; clips of different indices are independent.
    """
    # 2: another stream than that of a scene of the same seed and index.
    key = [2, int(seed), int(index)]
    rng = np.random.default_rng(key)
    time = str(
        rng.choice(("night", "dusk", "day"), p=(preset.night, preset.dusk, 1 - preset.night - preset.dusk))
    )
    light = Light.sample(rng, time)
    road = Road.sample(rng)
    middle = (preset.frames - 1) / 2 / preset.rate
    still = Camera(
        focal=float(preset.height * rng.uniform(1.3, 1.9)),
        center=preset.width / 2,
        horizon=float(preset.height * rng.uniform(0.3, 0.45)),
        height=float(rng.uniform(1.2, 2.0)),
        image_height=preset.height,
        image_width=preset.width,
    )
    people = _cast(preset, still, middle, key, rng)
    players = list(people)
    if rng.random() < preset.traffic:
        players.append(_traffic(preset, still, middle, key, rng, people))
    count = int(rng.integers(preset.occluders[0], preset.occluders[1] + 1)) if people else 0
    for number in range(count):
        players.append(_occluder(preset, still, middle, [*key, 1000 + number], rng, people))
    track = 0
    for player in players:
        player.first_track = track
        track += {"cyclist": 2, "biker": 2, "person": 1, "car": 1}.get(player.kind, 0)
    camera = CameraPath.sample(still, people, preset, rng)
    exposure = Exposure.sample(preset, light, rng)
    shutter = float(rng.uniform(*preset.shutter)) if rng.random() < preset.blur else 0.0
    times = [k / preset.rate for k in range(preset.frames)]
    backdrop = _backdrop(camera, light, road, players, times, rng)
    scenes = [
        _film(preset, camera, light, backdrop, players, t, shutter / preset.rate, exposure, number, rng)
        for number, t in enumerate(times)
    ]
    return Clip(
        scenes,
        {
            "actions": [p.motion.action for p in people],
            "shutter": round(shutter, 3),
            "occluders": count,
            "camera": camera.kind,
            "gains": [round(float(g), 3) for g in exposure.gains],
        },
    )


def _cast(preset, camera, middle, key, rng) -> list[_Player]:
    """The people, each somewhere in the picture in the middle of the clip."""
    names = [name for name in ACTIONS if preset.weights.get(name, 0) > 0]
    weights = np.array([preset.weights[name] for name in names], dtype=np.float64)
    people: list[_Player] = []
    for number in range(int(rng.integers(preset.people[0], preset.people[1] + 1))):
        action = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        seed = [*key, number]
        scale = Body.sample(np.random.default_rng(seed)).scale if action not in _KINDS else 1.0
        motion = Motion(action, rng, scale)
        for _ in range(12):
            size = np.exp(rng.uniform(*np.log(preset.size)))
            depth = camera.focal * 1.75 / (size * preset.height)
            column = preset.width * rng.uniform(0.15, 0.85)
            if all(abs(depth - other.path.y) > 0.6 for other in people):
                break
        if action in _KINDS or rng.random() < 0.55:
            yaw = float(rng.choice((0.0, np.pi))) + rng.uniform(-0.6, 0.6)
        else:
            yaw = rng.uniform(-np.pi, np.pi) if motion.speed else -np.pi / 2 + rng.uniform(-1.2, 1.2)
        x = (column - camera.center) / camera.scale_at(depth)
        path = Path(float(x), float(depth), float(yaw), motion.speed, float(rng.normal(0, 0.15)), middle)
        people.append(_Player(_KINDS.get(action, ("person",))[0], path, seed, motion))
    return people


def _traffic(preset, camera, middle, key, rng, people) -> _Player:
    """A car that drives across, mostly behind the people."""
    depths = [p.path.y for p in people] or [6.0]
    before = rng.random() < 0.3
    depth = max(min(depths) * 0.7, 3.2) if before else max(depths) + rng.uniform(1.5, 6)
    x = rng.uniform(-3, 3)
    yaw = float(rng.choice((0.0, np.pi))) + rng.normal(0, 0.05)
    return _Player("car", Path(x, depth, yaw, rng.uniform(4, 9), 0.0, middle), [*key, 999])


def _occluder(preset, camera, middle, seed, rng, people) -> _Player:
    """A pole, a bin, a tree or a board between the camera and one of the people."""
    person = people[int(rng.integers(len(people)))]
    t = middle + rng.uniform(-0.5, 0.5) * preset.frames / preset.rate
    spot = person.path.frame(t).origin
    depth = max(spot[1] * rng.uniform(0.65, 0.9), 1.3)
    column = spot[0] / spot[1] + rng.normal(0, 0.12) / spot[1]
    draw = (*FURNITURE, draw_board, draw_board, draw_board)[int(rng.integers(len(FURNITURE) + 3))]
    return _Player("furniture", Path(column * depth, depth, 0.0, 0.0, 0.0, 0.0), seed, draw=draw)


def _backdrop(camera: CameraPath, light, road, players, times, rng) -> Backdrop:
    """The street, as wide as the camera will see it."""
    clear = []
    for player in players:
        actors = [player.build(camera.wide, light, t) for t in (times[0], times[-1])]
        bounds = np.array([a.sketch.bounds() for a in actors])
        clear.append((bounds[:, 0].min(), bounds[:, 2].max(), max(a.far for a in actors)))
    return Backdrop(camera.wide, light, road, clear, rng)


def _film(preset, path, light, backdrop, players, t, shutter, exposure, number, rng) -> Scene:
    """One frame: the truth of its middle, and the picture averaged over the time that the shutter is open."""

    def take(moment):
        camera = path.at(moment)
        actors = [player.build(camera, light, moment) for player in players]
        return camera, sorted(actors, key=lambda a: -a.frame.origin[1])

    def street(camera):
        return path.look(backdrop.image, camera), path.look(backdrop.labels, camera, nearest=True)

    camera, actors = take(t)
    image, labels = street(camera)
    instance_map, instances, drawn = compose(camera, light, image, labels, actors)
    kept = measure(preset, instances, instance_map, labels, drawn)
    if shutter:
        ends = [take(t - shutter / 2), take(t + shutter / 2)]
        count = int(np.clip(np.ceil(_travel(*ends) / _BLUR_STEP) + 1, 1, _MOST_EXPOSURES))
        if count > 2:
            between = np.linspace(t - shutter / 2, t + shutter / 2, count)[1:-1]
            image = np.zeros_like(image)
            for camera, actors in (*ends, *(take(moment) for moment in between)):
                picture, ground = street(camera)
                paint_colors(camera, light, picture, ground, actors)
                image += picture / np.float32(count)
    return Scene(exposure.expose(image, number, rng), kept, instance_map, labels)


def _travel(start, end) -> float:
    """How far anything moves in the picture while the shutter is open, in pixels."""
    (camera, actors), (later_camera, later) = start, end
    moved = [abs(camera.center - later_camera.center), abs(camera.horizon - later_camera.horizon)]
    by_track = {a.instances[0].track: a for a in later if a.instances}
    for actor in actors:
        other = by_track.get(actor.instances[0].track) if actor.instances else None
        if other is None:
            continue
        for slot, points in actor.keypoints.items():
            moved.append(float(np.abs(points.pixels - other.keypoints[slot].pixels).max()))
        if not actor.keypoints:
            moved.append(float(np.abs(np.subtract(actor.sketch.bounds(), other.sketch.bounds())).max()))
    return max(moved)
