"""Frames of a video file and of a camera, by OpenCV."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np
from detectron2.data import detection_utils as utils
from PIL import Image

from ..engine.errors import UserError

__all__ = ["Video", "Webcam"]


class Video:
    """The frames of a video file, image ids from 1.

    Args:
        path: any that OpenCV reads.
        name: in the results; the file's by default.

    Raises:
        UserError: OpenCV does not read it.
    """

    sequential = True  # a frame follows from the one before
    live = False
    metadata = None
    root = ""

    def __init__(self, path: str, name: str = ""):
        self.path = self._path = path
        self._name = name or os.path.basename(path)
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise UserError(f"{path}: OpenCV cannot read it as a video, and its name is not an image's")
        self._place = 0
        self._ended = False

    def __len__(self) -> int:
        """Frames that the file announces; there may be fewer or more."""
        return max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    @property
    def fps(self) -> float | None:
        """Frames a second, if the file says."""
        return _fps(self._capture)

    @property
    def identity(self) -> list:
        return [self._name, os.path.getsize(self._path)]

    def stamp(self, index: int) -> None:
        """None: the size of the file is part of the identity."""

    def name(self, index: int) -> str:
        return f"{self._path}, frame {index}"

    def readers(self, image_format: str, done: set[int]) -> Iterator[tuple[int, dict, Callable]]:
        """As `ImageFiles.readers`, without end; what is read beyond the last frame is None."""
        if self._place:
            self._capture.open(self._path)
            self._place = 0
        index = 0
        while True:
            if index not in done:
                record = {"file_name": self._path, "image_id": index + 1, "frame": index}
                yield index, record, partial(self._read, index, image_format)
            index += 1

    def _read(self, index: int, image_format: str) -> np.ndarray | None:
        while self._place <= index:
            if not self._capture.grab():
                self._check_end()
                return None
            self._place += 1
        whole, frame = self._capture.retrieve()
        if not whole:
            raise OSError("OpenCV cannot decode the frame")
        return _in_format(frame, image_format)

    def _check_end(self):
        if self._place < len(self) and not self._ended:
            logging.getLogger(__name__).warning(
                "%s announces %d frames, of which OpenCV reads %d: is it cut short?",
                self._path,
                len(self),
                self._place,
            )
        self._ended = True

    def short_name(self, record: dict) -> str:
        return self._name


class Webcam:
    """What a camera of this machine sees, until `stop`, the end of its stream, or an interruption.

    Args:
        number: OpenCV's, from 0.

    Raises:
        UserError: OpenCV finds no such camera.
    """

    sequential = True
    live = True  # it cannot be read twice
    metadata = None
    root = ""

    def __init__(self, number: int):
        self._number = number
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise UserError(
                f"webcam:{number}: OpenCV finds no such camera; they count from 0, and others may use it"
            )
        self._started = time.time()
        self._stopped = threading.Event()

    def __len__(self) -> int:
        return 0

    @property
    def fps(self) -> float | None:
        """Frames a second, if the camera says."""
        return _fps(self._capture)

    @property
    def identity(self) -> list:
        """No other recording continues this one."""
        return [f"webcam:{self._number}", self._started]

    def stamp(self, index: int) -> None:
        """None: there is no file."""

    def name(self, index: int) -> str:
        return f"webcam:{self._number}, frame {index}"

    def stop(self) -> None:
        """No frame is read any more."""
        self._stopped.set()

    def readers(self, image_format: str, done: set[int]) -> Iterator[tuple[int, dict, Callable]]:
        """As `ImageFiles.readers`, without end; what is read after the end is None."""
        index = 0
        while True:
            record = {"file_name": f"webcam:{self._number}", "image_id": index + 1, "frame": index}
            yield index, record, partial(self._read, image_format)
            index += 1

    def _read(self, image_format: str) -> np.ndarray | None:
        if self._stopped.is_set():
            return None
        whole, frame = self._capture.read()
        return _in_format(frame, image_format) if whole else None

    def short_name(self, record: dict) -> str:
        return f"webcam:{self._number}"


def _fps(capture) -> float | None:
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0 < fps < 1000 else None


def _in_format(frame: np.ndarray, image_format: str) -> np.ndarray:
    if image_format == "BGR":
        return frame
    return utils.convert_PIL_to_numpy(Image.fromarray(frame[:, :, ::-1]), image_format)
