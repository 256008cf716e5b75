"""Where images come from: a folder, a video, a registered dataset, or a list of files."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data import detection_utils as utils
from PIL import Image

from ..data.loading import coco_loader
from ..data.problems import Problems
from ..engine.errors import UserError, did_you_mean

__all__ = ["IMAGE_SUFFIXES", "ImageFiles", "Video", "describe", "open_source"]

_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
_LOOK = 4096  # bytes
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageFiles:
    """Images that each have a file.

    Args:
        records: of detectron2's standard format; ``file_name`` and ``image_id`` are read, and ``height`` and
            ``width`` are checked where they are there.
        root: folder from which the results name the files.
        metadata: of the dataset that they are.

    Raises:
        UserError: a record lacks one of the two, or two have the same ``image_id``.
    """

    sequential = False

    def __init__(self, records: Sequence[dict], root: str = "", metadata: Metadata | None = None):
        self.metadata = metadata
        self.root = root
        _check_records(records)
        self._records = [
            {key: record[key] for key in ("file_name", "image_id", "height", "width") if key in record}
            for record in records
        ]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def identity(self) -> list:
        """What another source of other images differs in."""
        return [[record["image_id"], self.short_name(record)] for record in self._records]

    def stamp(self, index: int) -> int | None:
        """Size of the file in bytes: one of another size is another image. None if it is gone."""
        try:
            return os.path.getsize(self._records[index]["file_name"])
        except OSError:
            return None

    def name(self, index: int) -> str:
        return os.fspath(self._records[index]["file_name"])

    def readers(self, image_format: str, done: set[int]) -> Iterator[tuple[int, dict, Callable]]:
        """Place in the source, record, and what reads the image, of each that is not done."""
        for index, record in enumerate(self._records):
            if index not in done:
                yield index, record, partial(utils.read_image, record["file_name"], image_format)

    def short_name(self, record: dict) -> str:
        file_name = record["file_name"]
        return Path(os.path.relpath(file_name, self.root)).as_posix() if self.root else os.fspath(file_name)


class Video:
    """The frames of a video file, image ids from 1.

    Args:
        path: any that OpenCV reads.

    Raises:
        UserError: OpenCV does not read it.
    """

    sequential = True  # a frame follows from the one before
    metadata = None
    root = ""

    def __init__(self, path: str):
        self._path = path
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise UserError(f"{path}: OpenCV cannot read it as a video, and its name is not an image's")
        self._place = 0
        self._ended = False

    def __len__(self) -> int:
        """Frames that the file announces; there may be fewer or more."""
        return max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    @property
    def identity(self) -> list:
        return [os.path.basename(self._path), os.path.getsize(self._path)]

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
        if image_format == "BGR":
            return frame
        return utils.convert_PIL_to_numpy(Image.fromarray(frame[:, :, ::-1]), image_format)

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
        return os.path.basename(self._path)


def _check_records(records):
    by_id = {}
    for number, record in enumerate(records):
        for key in ("file_name", "image_id"):
            if key not in record:
                raise UserError(f"record {number} of the source has no {key}: {str(record)[:200]}")
        other = by_id.setdefault(record["image_id"], record)
        if other is not record:
            raise UserError(
                f"two records of the source have image_id {record['image_id']}: {other['file_name']} and "
                f"{record['file_name']}; give each its own, or none any"
            )


def describe(record: dict) -> str:
    """The file of a record, and the frame of a video's."""
    frame = f", frame {record['frame']}" if "frame" in record else ""
    return f"{record['file_name']}{frame}"


def open_source(source) -> ImageFiles | Video:
    """
    Args:
        source: a registered dataset; a folder, whose images are taken with those of the folders in it, sorted
            by path, ids from 1, hidden files and folders left out; an image or video file; or a sequence of image
            files or of detectron2's dataset records.

    Raises:
        UserError: it is none of these, or has no images.
    """
    if isinstance(source, (ImageFiles, Video)):
        return source
    if not isinstance(source, (str, os.PathLike)):
        return _sequence(source)
    name = os.fspath(source)
    if name in DatasetCatalog.list():
        return _dataset(name)
    if os.path.isdir(name):
        found = (p for p in Path(name).rglob("*") if _is_image(p, Path(name)))
        files = sorted(found, key=lambda path: path.relative_to(name).as_posix())
        if not files:
            raise UserError(f"{name}: no images in this folder; looked for {' '.join(IMAGE_SUFFIXES)}")
        return _numbered(files, name)
    if not os.path.isfile(name):
        raise UserError(
            f"{name!r} is no file, folder or registered dataset{did_you_mean(name, DatasetCatalog.list())}"
        )
    if name.lower().endswith(IMAGE_SUFFIXES):
        return _numbered([name], "")
    if _is_text(name):
        raise UserError(f"{name}: it is text, neither an image ({' '.join(IMAGE_SUFFIXES)}) nor a video")
    return Video(name)


def _is_image(path: Path, root: Path) -> bool:
    """Whether a path in a folder is an image file, and no hidden one or one that a system put there."""
    parts = path.relative_to(root).parts
    if any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in parts):
        return False
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _is_text(name: str) -> bool:
    """Whether a file begins as text does, which FFmpeg would show as a video of its letters."""
    with open(name, "rb") as file:
        start = file.read(_LOOK)
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not merely a letter that is cut in two
            return False
        text = start[: error.start].decode()
    return bool(text) and all(letter.isprintable() or letter.isspace() for letter in text)


def _numbered(files, root):
    records = [{"file_name": os.fspath(file), "image_id": i} for i, file in enumerate(files, 1)]
    return ImageFiles(records, root)


def _sequence(source):
    items = list(source)
    if not items:
        raise UserError("the source is empty: it has no images")
    if not isinstance(items[0], dict):
        return _numbered(items, "")
    return ImageFiles([{"image_id": i, **record} for i, record in enumerate(items, 1)])


def _dataset(name):
    problems = Problems(name)
    try:
        loader = coco_loader(name)
        records = loader.load(problems) if loader is not None else DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise UserError(f"dataset {name!r} is not on disk: {error}") from error
    except Exception as error:  # a registered function may raise anything
        raise UserError(f"dataset {name!r} cannot be read: {type(error).__name__}: {error}") from error
    # Of annotations nothing is needed.
    wrong = [finding for finding in problems.errors if finding.kind.startswith("image-")]
    if wrong:
        raise UserError("\n".join(f"{problems.title}, {finding}" for finding in wrong))
    if not records:
        raise UserError(f"dataset {name!r} is empty: it has no images")
    records = [{"image_id": i, **record} for i, record in enumerate(records, 1)]
    metadata = MetadataCatalog.get(name)
    return ImageFiles(records, metadata.get("image_root", ""), metadata)
