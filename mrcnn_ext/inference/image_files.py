"""Images that each have a file, on disk, on the web or in object storage."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import Metadata
from detectron2.data import detection_utils as utils

from ..engine.errors import UserError
from .downloads import is_url, read_url
from .object_storage import is_stored, read_stored

__all__ = ["ImageFiles", "describe", "reader_of"]


class ImageFiles:
    """Images that each have a file.

    Args:
        records: of detectron2's standard format; ``file_name`` and ``image_id`` are read, and ``height`` and
            ``width`` are checked where they are there. A ``file_name`` may be an address of the web.
        root: folder from which the results name the files.
        metadata: of the dataset that they are.
        names: by which the results call files that have other names of their own.
        sizes: of each file in bytes, None where it is not known; none for no file. See `stamp`.

    Raises:
        UserError: a record lacks one of the two, or two have the same ``image_id``.
    """

    sequential = False
    live = False
    fps = None

    def __init__(
        self,
        records: Sequence[dict],
        root: str = "",
        metadata: Metadata | None = None,
        names: Mapping[str, str] | None = None,
        sizes: Sequence[int | None] = (),
    ):
        self.metadata = metadata
        self.root = root
        self._names = dict(names or {})
        self._sizes = sizes
        self._folder = None  # of files that are removed with this object
        _check_records(records)
        self._records = [
            {key: record[key] for key in ("file_name", "image_id", "height", "width") if key in record}
            for record in records
        ]

    def __len__(self) -> int:
        return len(self._records)

    @property
    def short_names(self) -> list[tuple]:
        """Id and name in the results of each image."""
        return [(record["image_id"], self.short_name(record)) for record in self._records]

    @property
    def identity(self) -> list:
        """What another source of other images differs in."""
        return [[record["image_id"], self.short_name(record)] for record in self._records]

    def stamp(self, index: int) -> int | None:
        """Size of the file in bytes: one of another size is another image. None if it is gone."""
        if self._sizes and self._sizes[index] is not None:
            return self._sizes[index]
        try:
            return os.path.getsize(self._records[index]["file_name"])
        except OSError:
            return None

    def name(self, index: int) -> str:
        file_name = os.fspath(self._records[index]["file_name"])
        return self._names.get(file_name, file_name)

    def readers(self, image_format: str, done: set[int]) -> Iterator[tuple[int, dict, Callable]]:
        """Place in the source, record, and what reads the image, of each that is not done."""
        for index in range(len(self._records)):
            if index not in done:
                yield self.reader(index, image_format)

    def reader(self, index: int, image_format: str) -> tuple[int, dict, Callable]:
        """Place in the source, record, and what reads the image."""
        record = self._records[index]
        if (called := self._names.get(os.fspath(record["file_name"]))) is not None:
            record = {**record, "called": called}
        return index, record, partial(reader_of(record["file_name"]), record["file_name"], image_format)

    def record(self, index: int) -> dict:
        """``file_name`` and ``image_id`` of an image."""
        return dict(self._records[index])

    def for_other_processes(self) -> "ImageFiles":
        """A copy that can be pickled, with absolute names of files, which reads images and no more."""
        other = copy.copy(self)
        other.metadata = other._folder = None
        other._records = [{**record, "file_name": _absolute(record["file_name"])} for record in self._records]
        return other

    def short_name(self, record: dict) -> str:
        file_name = os.fspath(record["file_name"])
        if file_name in self._names:
            return self._names[file_name]
        return Path(os.path.relpath(file_name, self.root)).as_posix() if self.root else file_name


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


def reader_of(file_name) -> Callable:
    """What reads an image file of this name, with the name and the format."""
    if is_stored(file_name):
        return read_stored
    return read_url if is_url(file_name) else utils.read_image


def _absolute(file_name):
    return file_name if is_url(file_name) or is_stored(file_name) else os.path.abspath(file_name)


def describe(record: dict) -> str:
    """The file of a record, as its user calls it, and the frame of a video's."""
    frame = f", frame {record['frame']}" if "frame" in record else ""
    return f"{record.get('called', record['file_name'])}{frame}"
