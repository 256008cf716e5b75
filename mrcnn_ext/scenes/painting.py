"""Painting the actors of a scene from far to near, and reading off what can be seen of each."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .figure import DrawnKeypoints
from .geometry import Frame, Light
from .sketch import Sketch, Sprite
from .spec import KEYPOINT_NAMES, STUFF
from .vehicles import SIZES

ACTOR_SIZES = {
    **SIZES,
    "person": (0.5, 0.55, 1.75),
    "cyclist": (1.8, 0.6, 1.85),
    "biker": (2.1, 0.8, 1.75),
    "bicycle": (1.75, 0.55, 1.08),
    "motorcycle": (2.1, 0.75, 1.25),
}


@dataclass
class Instance:
    """
    Attributes:
        category: one of the eight categories.
        iscrowd: whether it stands for a group that is not told apart.
        depth: metres from the camera.
        area: visible pixels; box: (x0, y0, x1, y1) of them, pixels, x1 and y1 exclusive.
        visible: fraction of the drawn pixels (within the image) that nothing else hides.
        keypoints: (17, 3) float64 of x, y (pixels, pixel i covers [i, i + 1)) and visibility: 0 outside the
            image (x = y = 0), 1 hidden, 2 seen; None for what is no single figure.
        head: (2, 2) float64, pixels of the bottom and the top of a figure's head, None where there is none.
        track: which actor of a clip it is, from 0; None in a single scene.
    """

    category: str
    iscrowd: bool
    depth: float
    area: int = 0
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    visible: float = 1.0
    keypoints: np.ndarray | None = None
    head: np.ndarray | None = None
    track: int | None = None


@dataclass
class Scene:
    """
    Attributes:
        image: (H, W, 3) uint8, RGB.
        instances: from far to near.
        instance_map: (H, W) uint16, 1 + the index into `instances` of what is seen at a pixel, 0 for none.
        labels: (H, W) uint8, Cityscapes label ids of what is no instance (0 under instances' pixels
            is not guaranteed: look at `instance_map` first).
    """

    image: np.ndarray
    instances: list[Instance]
    instance_map: np.ndarray
    labels: np.ndarray

    def mask(self, index: int) -> np.ndarray:
        """The visible pixels (H, W) bool of `instances[index]`."""
        return self.instance_map == index + 1


@dataclass
class Actor:
    kind: str
    frame: Frame
    box: tuple[float, float, float, float]
    sketch: Sketch
    instances: list[Instance] = field(default_factory=list)
    keypoints: dict[int, DrawnKeypoints] = field(default_factory=dict)  # slot: keypoints
    shadow: np.ndarray | None = None  # (N, 3) world points on the ground
    lamps: list = field(default_factory=list)

    @property
    def far(self) -> float:
        """Depth of its farthest point, about."""
        length = ACTOR_SIZES[self.kind][0] if self.kind in ACTOR_SIZES else 1.0
        return float(self.frame.origin[1] + abs(self.frame.axes[0, 1]) * length / 2)


def _ground_shadow(light: Light, points: np.ndarray) -> np.ndarray:
    sun = light.sun
    return points - points[:, 2:3] / sun[2] * sun


def paint_colors(camera, light, image, labels, actors) -> None:
    """Paints actors onto a backdrop as `compose` does, more coarsely and without saying what is where.

    Args:
        image: of the backdrop; painted on in place.
        labels: of the backdrop.
        actors: from far to near.
    """
    cast_shadows(camera, light, actors, image, labels)
    for actor in actors:
        picture = actor.sketch.picture()
        if picture is not None:
            rows, cols, color, alpha = picture
            image[rows, cols] = image[rows, cols] * (1 - alpha) + _in_haze(actor, light, color, alpha)


def _in_haze(actor, light, color, alpha):
    haze = np.array((205, 212, 220), np.float32) * (1.0 if light.time == "day" else 0.6)
    mist = 1 - float(np.exp(-actor.frame.origin[1] / 260.0))
    return color * (1 - mist) + haze * mist * alpha


def compose(camera, light, image, labels, actors, rng=None):
    """
    Paints actors onto a backdrop, with their shadows.

    Args:
        image, labels: of the backdrop; painted on in place.
        actors: from far to near.
        rng: for the texture of surfaces; none without.

    Returns:
        (instance_map, instances, drawn): the map (H, W) uint16 as in `Scene`, all the actors' instances, and what
        `measure` needs to know of each.
    """
    cast_shadows(camera, light, actors, image, labels)
    instance_map = np.zeros(labels.shape, np.uint16)
    instances: list[Instance] = []
    drawn: list[tuple[Instance, float, Sprite | None, DrawnKeypoints | None]] = []
    for actor in actors:
        sprite = actor.sketch.render(rng)
        first = len(instances)
        instances.extend(actor.instances)
        for slot, instance in enumerate(actor.instances, 1):
            drawn.append(
                (
                    instance,
                    0.0 if sprite is None else sprite.coverage.get(slot, 0.0),
                    sprite,
                    actor.keypoints.get(slot),
                )
            )
        if sprite is None:
            continue
        rows = slice(sprite.y, sprite.y + sprite.alpha.shape[0])
        cols = slice(sprite.x, sprite.x + sprite.alpha.shape[1])
        alpha = sprite.alpha[:, :, None]
        image[rows, cols] = image[rows, cols] * (1 - alpha) + _in_haze(actor, light, sprite.color, alpha)
        owner = sprite.owner
        stuff = owner >= 100
        labels[rows, cols] = np.where(stuff, owner - np.where(stuff, 100, 0), labels[rows, cols])
        seen = instance_map[rows, cols]
        slots = (owner > 0) & ~stuff
        instance_map[rows, cols] = np.where(slots, owner.astype(np.uint16) + first, np.where(stuff, 0, seen))
    return instance_map, instances, drawn


def cast_shadows(camera, light, actors, image, labels) -> None:
    """Darkens the ground where the actors keep the sun off, and under them."""
    shade = np.zeros(labels.shape, np.uint8)
    for actor in actors:
        if actor.shadow is None:
            continue
        world = np.concatenate(
            [_ground_shadow(light, actor.shadow), _ground_shadow(light, actor.shadow * [1, 1, 0])]
        )
        world[:, 1] = np.maximum(world[:, 1], 0.8)
        if actor.kind == "crowd":
            world = actor.shadow * [1, 1, 0]
        hull = cv2.convexHull(camera.project(world).astype(np.float32))
        points = np.rint(np.clip(hull, -(2**14), 2**14) * 16).astype(np.int32)
        cv2.fillPoly(shade, [points], 255, cv2.LINE_AA, 4)
    sigma = max(0.8, labels.shape[0] / 200)
    shade = cv2.GaussianBlur(shade, (0, 0), sigma).astype(np.float32) / 255
    ground = np.isin(labels, [STUFF[n] for n in ("road", "sidewalk", "terrain", "rail track")])
    strength = 0.12 + 0.75 * light.direct
    image *= (1 - strength * shade * ground)[:, :, None]


def visible_lamps(camera, actors, instance_map, instances) -> list[tuple[np.ndarray, float, tuple]]:
    """Head and tail lamps that can be seen: pixel, radius in pixels, colour."""
    index = {id(instance): k + 1 for k, instance in enumerate(instances)}
    lamps = []
    for actor in actors:
        for point, color, facing in actor.lamps:
            to_camera = np.array([0, 0, camera.height]) - point
            if point[1] < 1 or np.dot(to_camera / np.linalg.norm(to_camera), facing) < 0.3:
                continue
            x, y = camera.project(point)[0]
            inside = 0 <= x < camera.image_width and 0 <= y < camera.image_height
            if inside and instance_map[int(y), int(x)] == index[id(actor.instances[0])]:
                lamps.append((np.array([x, y]), 0.18 * camera.scale_at(point[1]), color))
    return lamps


def measure(preset, instances, instance_map, labels, drawn) -> list[Instance]:
    """Fills in area, box and keypoints; drops what is too small or hidden to name, and renumbers the map."""
    h, w = instance_map.shape
    areas = np.bincount(instance_map.ravel(), minlength=len(instances) + 1)
    renumber = np.zeros(len(instances) + 1, np.uint16)
    kept = []
    for number, (instance, full, sprite, keypoints) in enumerate(drawn, 1):
        area = int(areas[number])
        if area < preset.min_area or area < preset.min_visible * full:
            continue
        kept.append(instance)
        renumber[number] = len(kept)
        rows = slice(sprite.y, sprite.y + sprite.alpha.shape[0])
        cols = slice(sprite.x, sprite.x + sprite.alpha.shape[1])
        mask = instance_map[rows, cols] == number
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        instance.area = area
        instance.visible = area / full
        instance.box = (
            sprite.x + int(xs[0]),
            sprite.y + int(ys[0]),
            sprite.x + int(xs[-1]) + 1,
            sprite.y + int(ys[-1]) + 1,
        )
        if keypoints is not None:
            instance.head = keypoints.head
            instance.keypoints = _see_keypoints(sprite, keypoints, instance_map == number, w, h)
    lost = (instance_map > 0) & (renumber[instance_map] == 0)
    labels[lost] = STUFF["unlabeled"]
    instance_map[:] = renumber[instance_map]
    return kept


def _see_keypoints(sprite, keypoints: DrawnKeypoints, mask, w, h) -> np.ndarray:
    result = np.zeros((len(KEYPOINT_NAMES), 3))
    for k, (x, y) in enumerate(keypoints.pixels):
        if not (0 <= x < w and 0 <= y < h):
            continue
        own = bool(keypoints.facing[k]) and bool(
            np.isin(sprite.part_at((x, y), keypoints.reach), keypoints.parts[k]).any()
        )
        r = 1
        window = mask[max(int(y) - r, 0) : int(y) + r + 1, max(int(x) - r, 0) : int(x) + r + 1]
        result[k] = x, y, 2 if own and window.any() else 1
    return result
