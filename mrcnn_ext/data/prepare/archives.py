"""Archives: downloaded on demand, verified, and unpacked so that it can be taken up again."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .parts import Archive

__all__ = ["check_archive", "download_archive", "unpack"]

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without an answer


def download_archive(archive: Archive, folder: Path, progress: bool = True) -> Path:
    """Downloads an archive, or what is missing of it: ``<name>.part`` is what has come so far. Whether it is the
    published one `check_archive` tells.

    Returns:
        Path: of the archive in ``folder``.

    Raises:
        OSError: the server does not answer, or stops before the end; what has come is kept.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    there = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "mrcnn_ext", **({"Range": f"bytes={there}-"} if there else {})}
    request = urllib.request.Request(archive.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            if there and answer.status != 206:  # the server sends all of it
                there = 0
            length = answer.headers.get("Content-Length", "")
            total = there + int(length) if length.isdigit() else None
            with (
                open(part, "ab" if there else "wb") as file,
                tqdm(
                    total=total,
                    initial=there,
                    unit="B",
                    unit_scale=True,
                    desc=archive.name,
                    disable=not progress,
                ) as bar,
            ):
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is all there is
            raise OSError(f"{archive.url}: the server answers {error.code} {error.reason}") from error
        total = None
    except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        raise OSError(f"{archive.url}: {reason}. What has come is kept: the same command goes on") from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(
            f"{archive.url}: {size} of {total} bytes have come. They are kept: the same command goes on"
        )
    os.replace(part, path)
    return path


def check_archive(path: Path, archive: Archive) -> None:
    """Looks at the size and the table of contents of an archive; its content is verified as it is unpacked.

    Raises:
        ValueError: it is not the published file, or not whole; says what to do.
    """
    size = path.stat().st_size
    again = f"continue the download, or delete it{f' and get it from {archive.url}' if archive.url else ''}"
    if archive.size is not None and size != archive.size:
        raise ValueError(f"{path} has {size} bytes, the publisher's {archive.size}: {again}")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no zip file, or its end is missing: {again}")


def unpack(path: Path, root: Path, progress: bool = True) -> int:
    """Unpacks an archive to a folder; every file is verified by its checksum, and is there when it is whole.

    Files that are there in their size are left as they are, so that unpacking can be taken up again.

    Returns:
        int: how many files were written.

    Raises:
        ValueError: a member is damaged, or would lie outside of the folder.
    """
    written = 0
    with zipfile.ZipFile(path) as file:
        members = [m for m in file.infolist() if not m.is_dir() and not _is_litter(m.filename)]
        for member in tqdm(members, path.name, unit="file", disable=not progress):
            target = root / _checked(member.filename, path)
            if target.is_file() and target.stat().st_size == member.file_size:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(file, member, target, path)
            written += 1
    return written


def _write(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        # zipfile compares the checksum when the end is read.
        with file.open(member) as source, open(temporary, "wb") as out:
            while chunk := source.read(_CHUNK):
                out.write(chunk)
        os.replace(temporary, target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path}: {member.filename} in it is damaged ({error}): get the archive again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_litter(name: str) -> bool:
    return name.startswith("__MACOSX/") or PurePosixPath(name).name in (".DS_Store", "Thumbs.db")


def _checked(name: str, path: Path) -> PurePosixPath:
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in name:
        raise ValueError(f"{path}: it has a file {name!r}, which would lie outside of the folder")
    return inside
