"""Files in object storage, by pyarrow's file systems: S3, Google Cloud Storage, Azure, HDFS.

Credentials are those that the clients of each find: environment variables, profiles, the machine's role.
"""

import contextlib
import functools
import io
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

import numpy as np
from detectron2.data import detection_utils as utils
from PIL import Image

from ..engine.errors import UserError

__all__ = ["SCHEMES", "StoredFile", "decode", "is_stored", "list_stored", "open_stored", "read_stored"]

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")
_OF_A_BUCKET = ("s3", "gs", "gcs")
_OF_A_CONTAINER = ("abfs", "abfss")


@dataclass(frozen=True)
class StoredFile:
    """
    Attributes:
        uri: of the file.
        name: below the URI that was listed.
        size: bytes.
    """

    uri: str
    name: str
    size: int | None


def is_stored(name) -> bool:
    """Whether a source is the URI of a file or folder in object storage."""
    return isinstance(name, str) and name.partition("://")[0].lower() in SCHEMES and "://" in name


def list_stored(uri: str) -> list[StoredFile]:
    """The file at a URI, or all files under it, sorted by name.

    Raises:
        UserError: pyarrow is not installed, there is nothing at the URI, or the storage refuses.
    """
    files, path = _located(uri)
    from pyarrow.fs import FileSelector, FileType

    with _naming(uri):
        info = files.get_file_info(path)
        if info.type == FileType.File:
            return [StoredFile(uri, info.base_name, info.size)]
        found = (
            files.get_file_info(FileSelector(path, recursive=True)) if info.type != FileType.NotFound else []
        )
    if not found:
        raise UserError(f"{uri}: there is nothing at this address")
    scheme, rest = uri.split("://", 1)
    rest, mark, query = rest.partition("?")
    root = path.rstrip("/") + "/"
    result = []
    for info in found:
        if info.type == FileType.File:
            name = info.path.removeprefix(root)
            file = f"{scheme}://{rest.rstrip('/')}/{quote(name)}{mark}{query}"
            result.append(StoredFile(file, name, info.size))
    return sorted(result, key=lambda file: file.name)


def open_stored(uri: str):
    """A file, opened to be read at any place.

    Raises:
        UserError: as `list_stored`.
    """
    files, path = _located(uri)
    with _naming(uri):
        return files.open_input_file(path)


def read_stored(uri: str, image_format: str) -> np.ndarray:
    """An image, as detectron2's ``read_image`` gives those on disk.

    Raises:
        UserError: it cannot be had.
    """
    with open_stored(uri) as file:
        return decode(file.read(), image_format)


def decode(content: bytes, image_format: str) -> np.ndarray:
    """(H, W, C) uint8 of an encoded image, as detectron2's ``read_image`` gives those on disk."""
    with Image.open(io.BytesIO(content)) as image:
        return utils.convert_PIL_to_numpy(utils._apply_exif_orientation(image), image_format)


def _located(uri):
    """The file system and the path in it."""
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.scheme in _OF_A_BUCKET:
        path = parts.netloc.rpartition("@")[2] + path
    elif parts.scheme in _OF_A_CONTAINER:
        path = parts.netloc.partition("@")[0] + path
    query = f"?{parts.query}" if parts.query else ""
    with _naming(uri):
        return _file_system(f"{parts.scheme}://{parts.netloc}/{query}"), path.rstrip("/") or "/"


@functools.lru_cache(maxsize=16)
def _file_system(root: str):
    """A client connects anew: one is enough for a bucket."""
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise UserError(f"object storage is read by pyarrow (pip install pyarrow): {error}") from error
    return FileSystem.from_uri(root)[0]


@contextlib.contextmanager
def _naming(uri):
    """Turns the errors of a storage into ones that name the URI."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{uri}: it cannot be read: {error}") from error
