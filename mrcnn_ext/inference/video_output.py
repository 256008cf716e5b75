"""An annotated video, by OpenCV."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ..engine.errors import UserError
from ..files import naming_full_disk

__all__ = ["VIDEO_SUFFIXES", "VideoFile", "check_video"]

# Codecs by suffix, the first that this OpenCV has is taken: H.264, which every player knows, is in few of its builds.
VIDEO_SUFFIXES = {
    ".mp4": ("avc1", "mp4v"),
    ".avi": ("MJPG",),
    ".mkv": ("H264", "mp4v"),
    ".webm": ("VP90", "VP80"),
}
_MAX_FPS = 1000


def check_video(path: str | os.PathLike, fps: float) -> None:
    """
    Raises:
        UserError: a video of this name or frame rate cannot be written. ``fps`` 0 stands for a default.
    """
    if Path(path).suffix.lower() not in VIDEO_SUFFIXES:
        raise UserError(f"{path}: a video's name must end with {', '.join(VIDEO_SUFFIXES)}")
    if not 0 <= fps <= _MAX_FPS:
        raise UserError(f"fps must be from 0 (the source's) to {_MAX_FPS}, got {fps}")


class VideoFile:
    """A video that is written frame by frame and appears when it is closed whole.

    Args:
        path: .mp4 (H.264 where OpenCV has it, else MPEG-4), .avi (Motion JPEG), .mkv or .webm (VP9); there is no sound.
        fps: frames a second.

    Raises:
        UserError: another suffix.
    """

    def __init__(self, path: str | os.PathLike, fps: float):
        self.path = Path(path)
        check_video(path, fps)
        self._draft = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        self._fps = fps
        self._writer = None
        self._size = None
        self._count = 0

    def write(self, frame: np.ndarray) -> None:
        """Appends a frame.

        Args:
            frame: (H, W, 3) uint8, RGB; others than the first are brought to its size.
        """
        if self._writer is None:
            # MPEG-4 and H.264 take even sides.
            self._size = (frame.shape[1] // 2 * 2, frame.shape[0] // 2 * 2)
            self._writer = self._open()
        if frame.shape[1::-1] != self._size:
            frame = _fitted(frame, self._size)
        self._writer.write(frame[:, :, ::-1])
        self._count += 1

    def _open(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for codec in VIDEO_SUFFIXES[self.path.suffix.lower()]:
            with _quiet():
                fourcc = cv2.VideoWriter_fourcc(*codec)
                writer = cv2.VideoWriter(str(self._draft), fourcc, self._fps, self._size)
            if writer.isOpened():
                return writer
        raise OSError(
            f"{self.path}: OpenCV cannot write it; tried {', '.join(VIDEO_SUFFIXES[self.path.suffix.lower()])}"
        )

    def close(self) -> None:
        """Puts the video in its place.

        Raises:
            UserError: it has no frames.
            mrcnn_ext.files.DiskFullError: there was no room for it; what was there before is as it was.
        """
        if self._writer is None:
            raise UserError(f"{self.path}: a video of no frames is not written")
        self._writer.release()
        self._writer = None
        try:
            with naming_full_disk(self.path):
                self._check()
                os.replace(self._draft, self.path)
        finally:
            self._draft.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leaves nothing of a video that is not closed."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        self._draft.unlink(missing_ok=True)

    def _check(self):
        """OpenCV does not tell that a disk is full: what was written is counted."""
        capture = cv2.VideoCapture(str(self._draft))
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        if found >= self._count:
            return
        # A full disk refuses this too, and is named by it.
        with open(self._draft, "ab") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        raise OSError(f"{self.path}: {self._count} frames were written, and OpenCV reads {found} of them")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """FFmpeg writes to standard error that it has not a codec, which is only tried."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _fitted(frame, size):
    """A frame within a size, black beside it; of one that is a row or column larger, that is cut off."""
    width, height = size
    if not (0 <= frame.shape[1] - width < 2 and 0 <= frame.shape[0] - height < 2):
        share = min(width / frame.shape[1], height / frame.shape[0])
        inner = (max(1, round(frame.shape[1] * share)), max(1, round(frame.shape[0] * share)))
        frame = cv2.resize(frame, inner, interpolation=cv2.INTER_AREA)
    part = frame[:height, :width]
    canvas = np.zeros((height, width, 3), np.uint8)
    y, x = (height - part.shape[0]) // 2, (width - part.shape[1]) // 2
    canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
    return canvas
