"""
The camera and the sun.

World axes, in metres: X to the right, Y away from the camera along the ground, Z up; the camera stands at
(0, 0, height) and looks along Y. Local axes of an actor: forward, left, up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 0.4  # metres; what is nearer is projected as if it stood there


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: focal length, principal column and horizon row in pixels, height in metres."""

    focal: float
    center: float
    horizon: float
    height: float
    image_height: int
    image_width: int

    def project(self, points) -> np.ndarray:
        """Pixels (N, 2) of world points (N, 3); pixel i covers [i, i + 1)."""
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        scale = self.focal / np.maximum(points[:, 1], NEAR)
        return np.stack(
            [self.center + points[:, 0] * scale, self.horizon + (self.height - points[:, 2]) * scale], axis=1
        )

    def scale_at(self, depth: float) -> float:
        """Pixels per metre at a depth."""
        return self.focal / max(depth, NEAR)


class Frame:
    """Where an actor stands (x, y) and looks: `yaw` in radians, 0 to the right, -pi/2 to the camera."""

    def __init__(self, x: float, y: float, yaw: float):
        self.origin = np.array([x, y, 0.0])
        c, s = np.cos(yaw), np.sin(yaw)
        self.axes = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])

    def world(self, local) -> np.ndarray:
        """World points (N, 3) of local ones (forward, left, up)."""
        return np.asarray(local, dtype=np.float64).reshape(-1, 3) @ self.axes + self.origin

    def direction(self, local) -> np.ndarray:
        """The world direction of a local one."""
        return np.asarray(local, dtype=np.float64) @ self.axes

    def moved(self, forward: float, left: float = 0.0) -> Frame:
        other = object.__new__(Frame)
        other.origin = self.world([forward, left, 0.0])[0]
        other.axes = self.axes
        return other


@dataclass(frozen=True)
class Light:
    """Unit vector towards the sun, how much of the light is direct, and the colour of the picture."""

    sun: np.ndarray
    direct: float
    tint: tuple[float, float, float]
    time: str

    def shade(self, normal) -> float:
        """Brightness of a surface, about 0.6 in the shade to 1.2 in full sun."""
        return 0.72 + 0.10 * float(normal[2]) + self.direct * max(0.0, float(np.dot(normal, self.sun)))

    @staticmethod
    def sample(rng: np.random.Generator, time: str) -> Light:
        azimuth = rng.uniform(0, 2 * np.pi)
        low, high = {"day": (35, 70), "dusk": (10, 25), "night": (50, 80)}[time]
        elevation = np.radians(rng.uniform(low, high))
        sun = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )
        direct = {"day": rng.uniform(0.05, 0.45), "dusk": rng.uniform(0.2, 0.4), "night": 0.05}[time]
        warm = rng.uniform(-1, 1)
        gain = rng.uniform(0.85, 1.1)
        tint = {
            "day": (gain * (1 + 0.05 * warm), gain, gain * (1 - 0.06 * warm)),
            "dusk": (0.95 * gain, 0.75 * gain, 0.62 * gain),
            "night": (0.5 * gain, 0.54 * gain, 0.7 * gain),
        }[time]
        return Light(sun, direct, tint, time)


def circle(center, radius: float, axis_a, axis_b, count: int = 24) -> np.ndarray:
    """Points (count, 3) of a circle spanned by two unit vectors."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return (
        np.asarray(center, dtype=np.float64)
        + radius * np.cos(angle)[:, None] * np.asarray(axis_a, dtype=np.float64)
        + radius * np.sin(angle)[:, None] * np.asarray(axis_b, dtype=np.float64)
    )


def two_bones(root, target, upper: float, lower: float, bend) -> tuple[np.ndarray, np.ndarray]:
    """
    The middle joint and the end of a limb of two bones that reaches from `root` towards `target`.

    Args:
        root, target: (3,) points.
        upper, lower: bone lengths.
        bend: (3,) direction to which the middle joint points.
    """
    root, target, bend = (np.asarray(v, dtype=np.float64) for v in (root, target, bend))
    reach = target - root
    length = np.linalg.norm(reach)
    axis = reach / max(length, 1e-9)
    length = np.clip(length, abs(upper - lower) + 1e-3, upper + lower - 1e-3)
    along = (upper**2 - lower**2 + length**2) / (2 * length)
    out = bend - axis * np.dot(bend, axis)
    out /= max(np.linalg.norm(out), 1e-9)
    middle = root + axis * along + out * np.sqrt(max(upper**2 - along**2, 0.0))
    return middle, root + axis * length
