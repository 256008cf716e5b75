"""Files that are made from results that are there: what a continued run lacks, and annotated videos."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from detectron2.data import Metadata
from tqdm import tqdm

from ..engine.errors import UserError
from .detections import detections_of
from .drawing import Painter, Style
from .identity import digest
from .outputs import ImageOutputs, limbs_of
from .results import ResultsFile
from .tracking import Tracker
from .video_output import VideoFile, check_video

__all__ = ["AnnotatedVideo", "RunVideo", "make_missing"]

_FPS = 10.0  # of images, and of videos that do not say


class _AllBut:
    """Contains every place in a source but some."""

    def __init__(self, places):
        self._places = set(places)

    def __contains__(self, place):
        return place not in self._places


def make_missing(source, results: ResultsFile, outputs: ImageOutputs, progress: bool = True) -> int:
    """Makes the files of those images that were done with other `OutputOptions`, or with none.

    Returns:
        Of how many images.

    Raises:
        UserError: an image cannot be read any more.
    """
    wanted = outputs.options.identity
    if not wanted or source.live:
        return 0
    if results.complete and all(results.made(kind) == value for kind, value in wanted.items()):
        return 0
    stale = {}
    for index, image, found, made in results.lines():
        kinds = {kind for kind, value in wanted.items() if made.get(kind) != value}
        if kinds:
            stale[index] = (image, found, kinds)
    if not stale:
        return 0
    logging.getLogger(__name__).info("Drawing %d images that were predicted before", len(stale))
    for index, record, pixels in _again(source, stale, progress):
        image, found, kinds = stale[index]
        outputs.write(pixels, image, record["file_name"], found, kinds)
    return len(stale)


def _again(source, places, progress: bool) -> Iterator[tuple[int, dict, np.ndarray]]:
    """The images at some places of a source, as RGB, in its order."""
    readers = source.readers("RGB", _AllBut(places))
    with contextlib.closing(readers):
        for _ in tqdm(range(len(places)), unit="image", desc="drawing", disable=not progress):
            index, record, read = next(readers)
            try:
                pixels = read()
            except Exception as error:  # decoders raise anything
                raise UserError(f"{source.name(index)}: the image cannot be read again: {error}") from error
            if pixels is None:
                raise UserError(f"{source.name(index)}: the video ends before it")
            yield index, record, pixels


class AnnotatedVideo:
    """Draws frame after frame, with a colour for each track, and writes them.

    Args:
        path: see `VideoFile`.
        fps: frames a second; 0 for those of the source, or 10.
        min_score: detections below are not drawn.
        names: of the classes by category id.
    """

    def __init__(
        self,
        path: str,
        fps: float,
        style: Style,
        min_score: float,
        names: dict[int, str],
        metadata: Metadata,
        source: Any,
    ):
        self._file = VideoFile(path, fps or source.fps or _FPS)
        self._tracker = Tracker(min_score)
        self._painter = Painter(style, metadata.get("keypoint_names", None) or (), limbs_of(metadata))
        self._names, self._min_score = names, min_score

    def write(self, pixels: np.ndarray, records: list[dict]) -> None:
        """Appends a frame.

        Args:
            pixels: (H, W, 3) uint8, RGB.
            records: COCO results of the frame; they get their ``track_id`` where they have none.
        """
        if not all("track_id" in record for record in records) or not records:
            self._tracker.update(records, pixels.shape[:2])
        found = detections_of(records, self._names or None, self._min_score)
        self._file.write(self._painter.draw(pixels, found))

    def close(self) -> None:
        """Puts the video in its place."""
        self._file.close()

    def discard(self) -> None:
        """Leaves nothing of it."""
        self._file.discard()


@dataclass(frozen=True)
class RunVideo:
    """The annotated video of a run of predictions: drawn while they come, or from the results that are there.

    Args:
        path, fps, min_score, style, names, metadata, source: see `AnnotatedVideo`.
        overwrite: whether it may take the place of another run's.
    """

    path: str | os.PathLike
    fps: float
    min_score: float
    style: Style
    names: dict[int, str]
    metadata: Metadata
    source: Any
    overwrite: bool

    @property
    def identity(self) -> str:
        """Differs where another video would be written."""
        return digest([str(self.path), self.fps, self.min_score, asdict(self.style)])

    def check(self, begins: bool) -> None:
        """Refuses a video that cannot be written.

        Args:
            begins: whether no results are there yet that might say that a file in its place is theirs.

        Raises:
            UserError: the name or ``fps`` cannot be, or another file is in its place.
        """
        check_video(self.path, self.fps)
        path = getattr(self.source, "path", "")
        if path and os.path.exists(self.path) and os.path.samefile(self.path, path):
            raise UserError(
                f"{self.path}: the annotated video would take the place of its source: give another name"
            )
        if begins:
            self._check_replaced(())

    def own(self, results: ResultsFile) -> None:
        """Lets the results say that the file is theirs.

        Raises:
            UserError: it is there, and another's.
        """
        if results.made("video") != self.identity:
            self._check_replaced(results.owned)
            results.own(os.path.abspath(self.path))

    def is_made(self, results: ResultsFile) -> bool:
        """Whether it is there, as it is wanted."""
        return results.made("video") == self.identity and os.path.exists(self.path)

    def begin(self) -> AnnotatedVideo:
        """The video without a frame."""
        path = os.fspath(self.path)
        return AnnotatedVideo(
            path, self.fps, self.style, self.min_score, self.names, self.metadata, self.source
        )

    def write(self, results: ResultsFile, progress: bool = True) -> None:
        """Writes it from results.

        Raises:
            UserError: an image or frame cannot be read any more, or the results hold no masks (.csv).
            mrcnn_ext.files.DiskFullError: there is no room for the video.
        """
        lines = {index: found for index, _, found, _ in results.lines()}
        video = self.begin()
        try:
            for index, _, pixels in _again(self.source, lines, progress):
                video.write(pixels, [dict(record) for record in lines[index]])
            video.close()
        finally:
            video.discard()

    def _check_replaced(self, owned):
        if os.path.exists(self.path) and not self.overwrite and os.path.abspath(self.path) not in owned:
            raise UserError(
                f"{self.path} exists and is not of this run: give another name, or replace it (overwrite=True, "
                "--overwrite)"
            )
