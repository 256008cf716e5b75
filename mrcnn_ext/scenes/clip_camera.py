"""The camera of a clip: where it looks from frame to frame, and how bright the frames become."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import Camera, Light

_MARGIN = (
    0.2,
    0.6,
)  # of the height and the width: what is drawn beyond each border of the still camera's picture


@dataclass
class CameraPath:
    """
    A camera that stands still, pans and tilts, zooms and shakes a little.

    The picture shifts and scales as a whole, as it does for the small angles of a short clip.

    Attributes:
        still: where it looks on the whole.
        kind: "still", "following" (somebody) or "panning".
        pan: (N,) columns by which the picture is shifted at the times `knots`, pixels.
        knots: (N,) seconds.
        shake: (2, 3, 3): for columns and rows, amplitudes (pixels), frequencies and phases of three sines.
        zoom: growth of the focal length per second, as the exponent of e.
    """

    still: Camera
    kind: str
    knots: np.ndarray
    pan: np.ndarray
    shake: np.ndarray
    zoom: float

    @staticmethod
    def sample(still: Camera, people: list, preset, rng: np.random.Generator) -> CameraPath:
        knots = np.arange(-1, preset.frames + 1) / preset.rate
        width = still.image_width
        shake = np.stack(
            [
                [rng.uniform(0, 1, 3) * still.image_height * 0.006, rng.uniform(0.5, 6, 3)]
                + [rng.uniform(0, 2 * np.pi, 3)]
                for _ in range(2)
            ]
        )
        moving, follows = rng.random() < preset.camera, rng.random() < 0.5
        drift = rng.uniform(-1, 1) * width * 0.25
        zoom = float(rng.normal(0, 0.12))
        if not moving:
            return CameraPath(still, "still", knots, np.zeros(len(knots)), shake * 0, 0.0)
        if follows and people:
            # Keeps up with the first of the people, not quite, and late.
            share, delay = rng.uniform(0.6, 1.0), rng.uniform(0, 0.12)
            spots = np.array([people[0].path.frame(t - delay).origin for t in knots])
            columns = spots[:, 0] * still.focal / spots[:, 1]
            kind, pan = "following", -share * (columns - columns.mean())
        else:
            kind, pan = "panning", drift * (knots - knots.mean())
        limit = _MARGIN[1] * 0.9 * width
        return CameraPath(still, kind, knots, np.clip(pan, -limit, limit), shake, zoom)

    @property
    def wide(self) -> Camera:
        """The still camera with a larger picture, of which `look` shows a part."""
        down, across = self._margins()
        return dataclasses.replace(
            self.still,
            center=self.still.center + across,
            horizon=self.still.horizon + down,
            image_height=self.still.image_height + 2 * down,
            image_width=self.still.image_width + 2 * across,
        )

    def at(self, t: float) -> Camera:
        """The camera at `t` seconds."""
        size, rate, start = self.shake[:, 0], self.shake[:, 1], self.shake[:, 2]
        across, down = (size * np.sin(2 * np.pi * rate * t + start)).sum(1)
        pan = float(np.interp(t, self.knots, self.pan))
        return dataclasses.replace(
            self.still,
            focal=self.still.focal * float(np.exp(self.zoom * (t - self.knots.mean()))),
            center=self.still.center + pan + float(across),
            horizon=self.still.horizon + float(down),
        )

    def look(self, picture: np.ndarray, camera: Camera, nearest: bool = False) -> np.ndarray:
        """What `camera` sees of a picture that `wide` took."""
        wide, zoom = self.wide, camera.focal / self.still.focal
        # Pixel i covers [i, i + 1), its centre is i + 0.5: OpenCV counts from centres.
        shift = [camera.center - wide.center * zoom, camera.horizon - wide.horizon * zoom]
        matrix = np.array([[zoom, 0, shift[0] + 0.5 * zoom - 0.5], [0, zoom, shift[1] + 0.5 * zoom - 0.5]])
        return cv2.warpAffine(
            picture,
            matrix,
            (camera.image_width, camera.image_height),
            flags=cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def _margins(self) -> tuple[int, int]:
        return int(_MARGIN[0] * self.still.image_height), int(_MARGIN[1] * self.still.image_width)


@dataclass
class Exposure:
    """
    From drawn colours to the picture: light, gain, lens blur, noise.

    Attributes:
        tint: of the light, (r, g, b).
        gains: (frames,) brightness of each frame, 1 as drawn.
        contrast: around a middle grey.
        lens, noise: standard deviations, pixels and grey levels.
    """

    tint: tuple[float, float, float]
    gains: np.ndarray
    contrast: float
    lens: float
    noise: float

    @staticmethod
    def sample(preset, light: Light, rng: np.random.Generator) -> Exposure:
        frames = preset.frames
        gains = np.ones(frames)
        changes, kind = rng.random() < preset.exposure, int(rng.integers(3))
        a, b = np.exp(rng.uniform(np.log(0.35), np.log(1.7), 2))
        at, hold = rng.integers(1, max(frames, 2)), rng.uniform(0.5, 3)
        flicker = np.exp(rng.normal(0, 0.2, frames))
        if changes and kind == 0:  # clouds: from one brightness to the other
            gains = np.exp(np.linspace(np.log(a), np.log(b), frames))
        elif changes and kind == 1:  # a step, to which the camera adapts
            late = np.maximum(np.arange(frames) - at, 0)
            gains = np.where(np.arange(frames) < at, 1.0, 1 + (a - 1) * np.exp(-late / hold))
        elif changes:  # flickering lamps
            gains = flicker
        noise = rng.uniform(0.3, 1.0) * preset.noise * (1.3 if light.time == "night" else 1.0)
        return Exposure(
            light.tint, gains, float(rng.uniform(0.9, 1.1)), float(rng.uniform(0, preset.lens)), float(noise)
        )

    def expose(self, image: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        """
        Args:
            image: (H, W, 3) float32, 0 to 255.
            number: of the frame, from 0.

        Returns:
            (H, W, 3) uint8.
        """
        out = image * np.array(self.tint, np.float32)
        out = ((out - 110) * self.contrast + 110) * np.float32(self.gains[number])
        if self.lens > 0.25:
            out = cv2.GaussianBlur(out, (0, 0), self.lens)
        out += rng.standard_normal(out.shape, dtype=np.float32) * np.float32(self.noise)
        return np.clip(np.rint(out), 0, 255).astype(np.uint8)
