"""How people move: their pose, height and place as functions of time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .figure import Pose
from .geometry import Frame

# Actions of someone on foot, then of riders.
ON_FOOT = ("walking", "running", "waving", "jumping", "squatting", "pointing")
ACTIONS = (*ON_FOOT, "cycling", "motorcycling")

_LEG = 0.85  # metres from hip to ankle of an adult
_WHEEL = 0.345  # radius of a bicycle's wheel, metres


@dataclass
class Path:
    """
    A way over the ground at constant speed, straight or on an arc.

    Attributes:
        x, y: metres, where it is at `time`.
        yaw: heading there, radians (0 to the right, -pi/2 to the camera).
        speed: metres per second.
        turn: change of the heading, radians per second.
        time: seconds.
    """

    x: float
    y: float
    yaw: float
    speed: float
    turn: float
    time: float

    def frame(self, t: float) -> Frame:
        """Where one stands at `t` seconds."""
        s = t - self.time
        if abs(self.turn) < 1e-6:
            dx, dy = np.cos(self.yaw) * self.speed * s, np.sin(self.yaw) * self.speed * s
        else:
            radius, yaw = self.speed / self.turn, self.yaw + self.turn * s
            dx = radius * (np.sin(yaw) - np.sin(self.yaw))
            dy = radius * (np.cos(self.yaw) - np.cos(yaw))
        return Frame(self.x + dx, max(self.y + dy, 1.2), self.yaw + self.turn * s)


class Motion:
    """
    An action, with a person's own pace, reach and unrest.

    Args:
        action: one of `ACTIONS`.
        rng: what differs between people.
        scale: of the body, 1 for 1.75 m.

    Attributes:
        speed: metres per second over the ground.
    """

    def __init__(self, action: str, rng: np.random.Generator, scale: float = 1.0):
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {ACTIONS}, got {action!r}")
        self.action = action
        self._phase = float(rng.uniform(0, 2 * np.pi))
        self._side = "L" if rng.random() < 0.5 else "R"
        self._both = rng.random() < 0.3
        # Slow unrest of a few degrees: amplitude, frequency and phase of one sine for each angle.
        self._unrest = np.stack(
            [rng.uniform(0.5, 3.5, 16), rng.uniform(0.2, 1.1, 16), rng.uniform(0, 2 * np.pi, 16)]
        )
        self._stride = float(rng.uniform(20, 30))
        self._bend = float(rng.uniform(10, 40))
        self._rate = float(rng.uniform(0.7, 1.25))
        self.speed = 0.0
        self._walks = action in ("walking", "running") or (action in ("waving", "pointing") and self._both)
        if action == "running":
            self._stride = float(rng.uniform(32, 42))
            self.speed = float(rng.uniform(2.2, 3.4)) * scale
        elif self._walks:
            self.speed = float(rng.uniform(0.8, 1.6)) * scale
        elif action == "cycling":
            self.speed = float(rng.uniform(1.8, 3.6))
        elif action == "motorcycling":
            self.speed = float(rng.uniform(2.0, 5.0))
        step = 4 * _LEG * scale * np.sin(np.radians(self._stride)) * (1.6 if action == "running" else 1.0)
        self._cadence = self.speed / step if self._walks else self._rate

    def _sway(self, angle: int, t: float) -> float:
        size, rate, start = self._unrest[:, angle]
        return float(size * np.sin(2 * np.pi * rate * t + start))

    def _turns(self, t: float) -> float:
        """The phase of what is repeated, radians."""
        return self._phase + 2 * np.pi * self._cadence * t

    def hop(self, t: float) -> float:
        """Height of the lower foot above the ground, metres."""
        if self.action == "running":
            return 0.06 * abs(np.sin(self._turns(t)))
        if self.action == "jumping":
            return 0.09 * abs(np.sin(self._turns(t)))
        return 0.0

    def pedalled(self, t: float) -> float:
        """How far the cranks of a bicycle have turned, radians."""
        return self._phase + self.speed / 5.2 * 2 * np.pi * t

    def rolled(self, t: float) -> float:
        """How far its wheels have turned, radians."""
        return self.speed / _WHEEL * t

    def pose(self, t: float) -> Pose:
        """The pose of someone on foot at `t` seconds."""
        sway = lambda k: self._sway(k, t)  # noqa: E731
        arms = {s: ((sway(k), 9 + sway(k + 2)), (8 + 2 * sway(k), 5)) for k, s in enumerate("LR")}
        legs = {s: ((sway(k + 4) * 0.5, 4), (-4, 3)) for k, s in enumerate("LR")}
        pose = Pose(
            lean=2 + sway(6), twist=sway(7), head_turn=5 * sway(8), head_nod=2 * sway(9), arms=arms, legs=legs
        )
        if self._walks:
            self._walk(pose, t)
        if self.action in ("waving", "jumping", "squatting", "pointing"):
            getattr(self, f"_{self.action}")(pose, t)
        return pose

    def _walk(self, pose: Pose, t: float) -> None:
        running = self.action == "running"
        phase = self._turns(t)
        pose.twist += 7 * np.cos(phase)
        pose.lean += 8 if running else 1
        for s, shift in (("L", 0.0), ("R", np.pi)):
            at = (phase + shift) % (2 * np.pi)
            thigh = self._stride * np.cos(at) + (10 if running else 3)
            # The knee bends while the leg swings forward, from pi to 2 pi, and gives a little as it takes the load.
            lifted = np.exp(-(((at - 1.4 * np.pi) / (0.3 * np.pi)) ** 2))
            loaded = np.exp(-(((at - 0.25 * np.pi) / (0.2 * np.pi)) ** 2))
            flexed = (16 + 85 * lifted) if running else (5 + 55 * lifted + 10 * loaded)
            pose.legs[s] = ((thigh, 2.0), (thigh - flexed, 1.5))
            arm = -self._stride * np.cos(at) * (1.1 if running else 0.8)
            bend = 85 if running else self._bend
            pose.arms[s] = ((arm, 8.0), (arm + bend + 0.2 * arm, 2.0))

    def _waving(self, pose: Pose, t: float) -> None:
        beat = np.sin(2 * np.pi * self._rate * 1.6 * t + self._phase)
        for s in "LR" if self._both and not self._walks else self._side:
            pose.arms[s] = ((15.0, 95 + 8 * beat), (8.0, 165 + 32 * beat))

    def _pointing(self, pose: Pose, t: float) -> None:
        beat = np.sin(2 * np.pi * self._rate * 0.7 * t + self._phase)
        arm = (85 + 18 * np.cos(self._phase + t), 30 + 30 * beat)
        pose.arms[self._side] = (arm, arm)

    def _jumping(self, pose: Pose, t: float) -> None:
        up = 0.5 - 0.5 * np.cos(self._turns(t))
        for s in "LR":
            pose.arms[s] = ((4.0, 12 + 143 * up), (6.0, 8 + 167 * up))
            pose.legs[s] = ((2.0, 4 + 20 * up), (-3.0, 3 + 18 * up))

    def _squatting(self, pose: Pose, t: float) -> None:
        down = 0.5 - 0.5 * np.cos(self._turns(t))
        pose.lean += 30 * down
        for s in "LR":
            pose.legs[s] = ((3 + 78 * down, 6 + 6 * down), (-3 - 27 * down, 3.0))
            pose.arms[s] = ((8 + 75 * down, 8.0), (12 + 75 * down, 4.0))
