"""What the readers of video datasets have in common: they build the content of a COCO annotation file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

__all__ = ["VideoContent", "box_of_keypoints", "naming", "need", "read_mat"]


class VideoContent:
    """Builds a COCO annotation file's content with "videos", "tracks", and people with keypoints.

    As in TAO, images have "video_id" and "frame_index" (from 0), annotations "video_id" and "track_id".

    Args:
        keypoints: their names.
        skeleton: pairs of names that lines are drawn between.
    """

    def __init__(self, keypoints: Sequence[str], skeleton: Sequence[tuple[str, str]]):
        self.keypoints = list(keypoints)
        self._lines = [[self.keypoints.index(a) + 1, self.keypoints.index(b) + 1] for a, b in skeleton]
        self.videos: list[dict] = []
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self._tracks: dict[tuple, int] = {}

    def video(self, name: str, height: int, width: int, **other) -> None:
        """Begins a video: the frames that follow are of it."""
        number = len(self.videos) + 1
        self.videos.append(
            {"id": number, "name": name, "height": height, "width": width, "length": 0, **other}
        )

    def frame(self, file_name: str, index: int, number: int | None = None) -> None:
        """Adds frame `index` (from 0) of the video: the people that follow are in it.

        Args:
            number: the id of its image; default the next one.
        """
        video = self.videos[-1]
        video["length"] += 1
        self.images.append(
            {
                "id": len(self.images) + 1 if number is None else number,
                "file_name": file_name,
                "height": video["height"],
                "width": video["width"],
                "video_id": video["id"],
                "frame_index": index,
            }
        )

    def person(self, track, bbox: Sequence[float] | None, keypoints, **other) -> None:
        """Adds a person, unless nothing of its box is in the image.

        Args:
            track: who it is within the video.
            bbox: x, y, width, height in pixels; None takes that of the keypoints, `box_of_keypoints`.
            keypoints: (K, 3) of x, y in COCO's pixel indices (0 is the centre of the first) and visibility.
        """
        image = self.images[-1]
        points = np.asarray(keypoints, dtype=np.float64).copy()
        points[points[:, 2] == 0] = 0
        if bbox is None:
            bbox = box_of_keypoints(points, image["height"], image["width"])
        x0, y0 = max(float(bbox[0]), 0.0), max(float(bbox[1]), 0.0)
        x1 = min(float(bbox[0] + bbox[2]), image["width"])
        y1 = min(float(bbox[1] + bbox[3]), image["height"])
        if x1 <= x0 or y1 <= y0:
            return
        key = (image["video_id"], track)
        track_id = self._tracks.setdefault(key, len(self._tracks) + 1)
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "video_id": image["video_id"],
                "track_id": track_id,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "keypoints": [float(v) for v in points.ravel()],
                "num_keypoints": int((points[:, 2] > 0).sum()),
                **other,
            }
        )

    def region(self, polygon: Sequence[float]) -> None:
        """Adds a region in which people are not annotated, as COCO's crowds: [x, y, ...] in pixels."""
        image = self.images[-1]
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        x, y = corners.min(0)
        w, h = corners.max(0) - (x, y)
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "iscrowd": 1,
                "bbox": [float(x), float(y), float(w), float(h)],
                "area": float(w * h),
                "keypoints": [0.0] * (3 * len(self.keypoints)),
                "num_keypoints": 0,
            }
        )

    def content(self) -> dict:
        """The content of the file."""
        tracks = [{"id": i, "category_id": 1, "video_id": video} for (video, _), i in self._tracks.items()]
        category = {"id": 1, "name": "person", "keypoints": self.keypoints, "skeleton": self._lines}
        return {
            "videos": self.videos,
            "tracks": tracks,
            "images": self.images,
            "annotations": self.annotations,
            "categories": [category],
        }


def box_of_keypoints(points: np.ndarray, height: int, width: int, margin: float = 0.2) -> list[float]:
    """The box round the labelled keypoints (K, 3), larger by `margin` of its longer side on each side, within the
    image; x, y, width, height."""
    labelled = points[points[:, 2] > 0, :2]
    if not len(labelled):
        return [0.0, 0.0, 0.0, 0.0]
    low, high = labelled.min(0), labelled.max(0) + 1
    grow = margin * float((high - low).max())
    x0, y0 = np.maximum(low - grow, 0)
    x1, y1 = np.minimum(high + grow, (width, height))
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


def need(path: Path, layout: str, url: str) -> Path:
    """`path`, if it is there.

    Raises:
        FileNotFoundError: names it, the layout and where to get the dataset.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: there is no such file or folder. The layout is {layout}; from {url}"
        )
    return path


@contextlib.contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Makes a ValueError that names the file, and what it should be, of whatever its content is wrong for."""
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be read as {what} ({type(error).__name__}: {error})") from error


def read_mat(path: Path, *keys: str) -> dict:
    """The variables of a MATLAB file.

    Raises:
        ValueError: it is no MATLAB file, or has not all of the variables; names the file.
        ImportError: scipy is missing.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{path}: scipy reads MATLAB files: pip install 'mrcnn_ext[video]'") from error
    try:
        content = loadmat(path)
    except Exception as error:  # scipy has errors of its own for damaged files
        raise ValueError(f"{path} cannot be read as a MATLAB file: {error}") from error
    missing = [key for key in keys if key not in content]
    if missing:
        known = ", ".join(key for key in content if not key.startswith("__"))
        raise ValueError(f"{path} has no {', '.join(map(repr, missing))}; it has {known or 'nothing'}")
    return content
