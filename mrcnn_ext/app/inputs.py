"""What the app looks at: uploaded images and videos, within limits, and generated samples.

An upload is decoded by Pillow or by FFmpeg (through OpenCV), each told which formats it may be.
"""

import contextlib
import functools
import hashlib
import io
import math
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..engine.errors import UserError
from ..scenes import generate_scene, get_preset

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Limits",
    "Picture",
    "read_upload",
    "sample_clip",
    "sample_scene",
]

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "ppm")
VIDEO_SUFFIXES = ("mp4", "mov", "m4v", "avi", "mkv", "webm")
Image.init()  # or Pillow does not know the names of all of these
_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
_MEGA = 2**20
# FFmpeg opens what a file refers to (a playlist's parts, a URL), whatever the file is called: it is told what there is.
_FFMPEG_OPTIONS = "protocol_whitelist;file|format_whitelist;avi,mov,matroska,webm"
_OPTIONS_KEY = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
_opening = threading.Lock()  # of a video: the options are an environment variable
_SEED = 20  # of the samples: scenes that the quickstart, whose seed is 0, trains and evaluates on are others
_CLIP_FRAMES, _CLIP_STEP = 24, 8


@dataclass(frozen=True)
class Limits:
    """What is refused, in words, instead of taking all memory or time.

    Attributes:
        image_bytes, video_bytes: of one file.
        megapixels: of one image, or of a frame of a video.
        video_seconds: of a video.
        frames: pictures that are taken from a video, evenly; the rest are skipped.
        files: uploaded at once.
        decoding_seconds: after which the reading of a video is given up.
    """

    image_bytes: int = 30 * _MEGA
    video_bytes: int = 100 * _MEGA
    megapixels: float = 25.0
    video_seconds: float = 30.0
    frames: int = 60
    files: int = 20
    decoding_seconds: float = 60.0


@dataclass(frozen=True)
class Picture:
    """An image, kept as its file's bytes and decoded when it is needed.

    Attributes:
        name: of the file, for people.
        data: an image file.
        frame: of a video, from 0.
    """

    name: str
    data: bytes
    frame: int | None = None

    @property
    def title(self) -> str:
        return self.name if self.frame is None else f"{self.name}, frame {self.frame}"

    @functools.cached_property
    def key(self) -> str:
        """Pictures of the same pixels have the same."""
        return hashlib.sha256(self.data).hexdigest()

    def read(self) -> np.ndarray:
        """(H, W, 3) uint8, RGB, turned as its EXIF data say."""
        with _opened(self.data) as image:
            image.load()  # before the EXIF data are asked for, which loses the error of a damaged PNG
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def read_upload(name: str, data: bytes, limits: Limits | None = None) -> list[Picture]:
    """An uploaded file as pictures: an image as one, a video as frames.

    Args:
        name: of the file, for messages alone; what it is is told by its content.
        data: of the file.
        limits: of what is taken; None for the defaults.

    Raises:
        UserError: it is too large, damaged, or no image or video.
    """
    limits = limits or Limits()
    if not data:
        raise UserError(f"{name}: the file is empty")
    suffix = _video_suffix(data)
    if suffix:
        _check_bytes(name, data, limits.video_bytes, "video")
        return _video(name, data, suffix, limits)
    _check_bytes(name, data, limits.image_bytes, "image")
    return [_image(name, data, limits)]


def sample_scene(number: int, preset: str = "easy") -> Picture:
    """A generated street scene.

    Args:
        number: from 0; each is another scene.
        preset: of `mrcnn_ext.scenes`.
    """
    scene = generate_scene(get_preset(preset), _SEED, number)
    return Picture(f"scene {number}.png", _png(scene.image))


def sample_clip(number: int) -> list[Picture]:
    """A short clip: a camera that passes by a generated scene.

    Args:
        number: from 0; each is another scene.
    """
    preset = get_preset("easy")
    travel = (_CLIP_FRAMES - 1) * _CLIP_STEP
    wide = get_preset("easy", width=preset.width + travel, actors=(5, 9), empty=0.0)
    scene = generate_scene(wide, _SEED, number).image
    return [
        Picture(f"clip {number}.png", _png(scene[:, start : start + preset.width]), frame)
        for frame, start in enumerate(range(0, travel + 1, _CLIP_STEP))
    ]


def _check_bytes(name, data, most, kind):
    if len(data) > most:
        raise UserError(
            f"{name}: the {kind} has {len(data) / _MEGA:.1f} MB, more than the {most / _MEGA:g} MB that are taken"
        )


def _check_pixels(name, width, height, limits, kind):
    if width * height > limits.megapixels * 1e6:
        raise UserError(
            f"{name}: the {kind} has {width} x {height} pixels, more than the {limits.megapixels:g} megapixels that "
            "are taken: make it smaller"
        )


def _opened(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # there is a limit of our own
        return Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS)


def _image(name, data, limits) -> Picture:
    try:
        with _opened(data) as image:
            size, mode = image.size, image.mode
    except Image.DecompressionBombError:
        raise UserError(
            f"{name}: the image has more than the {limits.megapixels:g} megapixels that are taken: make it smaller"
        ) from None
    except UnidentifiedImageError:
        raise UserError(
            f"{name}: this is neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video ({', '.join(VIDEO_SUFFIXES)})"
        ) from None
    except Exception as error:  # decoders raise anything for a damaged file
        raise UserError(f"{name}: the image is damaged ({error})") from None
    _check_pixels(name, *size, limits, "image")
    if mode.startswith("I") or mode == "F":
        raise UserError(f"{name}: the image has more than 8 bits per channel: convert it to 8 bits")
    picture = Picture(name, data)
    try:
        picture.read()
    except Exception as error:
        raise UserError(f"{name}: the image is damaged or cut short ({error})") from None
    return picture


def _video_suffix(data: bytes) -> str:
    """Of a container that the first bytes tell; "" for anything else."""
    if data[4:8] == b"ftyp":
        return ".mp4"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return ".avi"
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return ".mkv"
    return ""


def _video(name, data, suffix, limits) -> list[Picture]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"upload{suffix}")
        with open(path, "wb") as file:
            file.write(data)
        capture = _capture(path)
        try:
            if not capture.isOpened():
                raise UserError(
                    f"{name}: the video is damaged, or of a kind that FFmpeg does not decode here"
                )
            frames = [Picture(name, _png(frame), number) for number, frame in _frames(name, capture, limits)]
        finally:
            capture.release()
    if not frames:
        raise UserError(f"{name}: the video has no frame that can be decoded")
    return frames


def _capture(path: str) -> cv2.VideoCapture:
    with _opening:
        before = os.environ.get(_OPTIONS_KEY)
        os.environ[_OPTIONS_KEY] = _FFMPEG_OPTIONS
        try:
            return cv2.VideoCapture(path, cv2.CAP_FFMPEG)
        finally:
            if before is None:
                del os.environ[_OPTIONS_KEY]
            else:
                os.environ[_OPTIONS_KEY] = before


def _frames(name, capture, limits) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers and RGB pixels of the frames that are taken, evenly over the video."""
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    _check_pixels(name, width, height, limits, "video")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate <= 1000 else 25.0
    most = math.ceil(rate * limits.video_seconds)
    announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    too_long = (
        f"{name}: the video lasts {{}}, more than the {limits.video_seconds:g} seconds that are taken: cut it"
    )
    if announced > most:
        raise UserError(too_long.format(f"{announced / rate:.0f} seconds"))
    step = max(1, math.ceil((announced or most) / limits.frames))
    end = time.monotonic() + limits.decoding_seconds
    number = 0
    while capture.grab():
        if number >= most:
            raise UserError(too_long.format("longer than it says"))
        if time.monotonic() > end:
            raise UserError(
                f"{name}: reading the video took more than {limits.decoding_seconds:g} seconds: cut it"
            )
        if number % step == 0 and number // step < limits.frames:
            with contextlib.suppress(cv2.error):
                whole, frame = capture.retrieve()
                if whole:
                    _check_pixels(name, frame.shape[1], frame.shape[0], limits, "video")
                    yield number, frame[:, :, ::-1]
        number += 1


def _png(pixels: np.ndarray) -> bytes:
    """Of RGB pixels, without loss and soon made."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return data.tobytes()
