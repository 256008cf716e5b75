"""Files that are written whole or not at all, and archives that are verified before they are read.

Imports neither detectron2 nor torch.
"""

import contextlib
import errno
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["DamagedFileError", "DiskFullError", "naming_full_disk", "replacing", "verify_archive"]


class DiskFullError(OSError):
    """A file could not be written because its disk, or the quota on it, is full. The message names the file."""

    def __str__(self):
        return self.strerror or super().__str__()


class DamagedFileError(ValueError):
    """The content of an archive does not match its checksums."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", by_several: bool = False) -> Iterator[IO[Any]]:
    """Opens a file that takes the place of ``path`` when it is closed without an error.

    It is written beside its place, as ``<path>.tmp``, flushed to the disk, and then moved: at any moment ``path`` is
    what it was before or complete. After an error nothing is left beside it.

    Args:
        path: its folder must exist.
        mode: "wb", or "w" for UTF-8 text.
        by_several: processes may write it at the same time. Each writes a ``<path>.<its number>.tmp``, which nobody
            writes over when it was killed.

    Raises:
        DiskFullError: there is no room; what was there before is as it was.
    """
    temporary = f"{os.fspath(path)}{f'.{os.getpid()}' if by_several else ''}.tmp"
    try:
        with naming_full_disk(path):
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                # Its content must be on the disk before its name is, or a power cut leaves an empty file.
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a full disk, while ``path`` is written, into one that says so.

    PyTorch's writers do not pass on that the disk is full, but report how far they came: the reason is looked for in
    the chain of errors, and then on the disk.
    """
    try:
        yield
    except DiskFullError:
        raise
    except (OSError, RuntimeError) as error:
        if not _is_full(error):
            raise
        message = f"the disk is full: {os.fspath(path)} could not be written, and what was there before is unchanged"
        raise DiskFullError(errno.ENOSPC, message) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__context__
    return False


def verify_archive(path: str | os.PathLike) -> None:
    """Reads a zip archive, which files of ``torch.save``, TorchScript and torch.export are, against its checksums.

    ``torch.load`` does not. Files that are no archives are left alone.

    Raises:
        DamagedFileError: a member does not match its checksum, or the archive is cut short.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedFileError(f"{Path(path).name} is damaged: {error}") from error
    if damaged is not None:
        raise DamagedFileError(f"{Path(path).name} is damaged: {damaged} in it does not match its checksum")
