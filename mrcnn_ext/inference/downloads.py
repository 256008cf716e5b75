"""Files from the web, by Python's urllib: http and https only, up to a size, within a time."""

import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
from detectron2.data import detection_utils as utils

from ..engine.errors import UserError
from ..files import naming_full_disk

__all__ = ["MAX_IMAGE", "MAX_VIDEO", "download", "is_url", "read_url"]

MAX_IMAGE, MAX_VIDEO = 100 * 2**20, 4 * 2**30  # bytes
_TIMEOUT = 30.0  # seconds without an answer
_SLOWEST = 10 * 2**10  # bytes a second, below which a download is given up after the time out
_CHUNK = 2**16
_SCHEMES = ("http", "https")


def is_url(name) -> bool:
    """Whether a source is an address of the web."""
    return isinstance(name, str) and name.lower().startswith(("http://", "https://"))


class _OnlyTheWeb(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https, and to nothing else (urllib's own follows ftp)."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).scheme not in _SCHEMES:
            raise UserError(f"{req.full_url}: it redirects to {newurl}, which is no http or https address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, path: str | os.PathLike, limit: int, timeout: float = _TIMEOUT) -> None:
    """Writes what is at an address to a file.

    Args:
        url: http or https.
        path: of the file; nothing is left there after an error.
        limit: in bytes; what is larger is refused.
        timeout: seconds to wait for an answer, or for more of it.

    Raises:
        UserError: there is nothing at the address, the server does not answer, or the file is too large.
        mrcnn_ext.files.DiskFullError: there is no room.
    """
    opener = urllib.request.build_opener(_OnlyTheWeb)
    request = urllib.request.Request(url, headers={"User-Agent": "mrcnn_ext"})
    try:
        with (
            opener.open(request, timeout=timeout) as answer,
            naming_full_disk(path),
            open(path, "wb") as file,
        ):
            _copy(answer, file, url, limit, timeout)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        Path(path).unlink(missing_ok=True)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{url}: it cannot be downloaded: {getattr(error, 'reason', error)}") from error


def _copy(answer, file, url, limit, timeout):
    announced = answer.headers.get("Content-Length", "")
    if announced.isdigit() and int(announced) > limit:
        raise UserError(f"{url}: it has {int(announced)} bytes, and at most {limit} are downloaded")
    size, start = 0, time.monotonic()
    while chunk := answer.read1(_CHUNK):
        size += len(chunk)
        if size > limit:
            raise UserError(f"{url}: it has more than the {limit} bytes that are downloaded at most")
        elapsed = time.monotonic() - start
        if elapsed > timeout and size < _SLOWEST * elapsed:
            raise UserError(f"{url}: it comes too slowly: {size} bytes in {elapsed:.0f} seconds")
        file.write(chunk)
    if announced.isdigit() and size < int(announced):
        raise UserError(f"{url}: the connection ended after {size} of {announced} bytes")


def read_url(url: str, image_format: str) -> np.ndarray:
    """An image from the web, as detectron2's ``read_image`` gives those on disk.

    Raises:
        UserError, OSError: it cannot be downloaded or read.
    """
    with tempfile.TemporaryDirectory(prefix="mrcnn_ext-") as folder:
        path = os.path.join(folder, "image")
        download(url, path, MAX_IMAGE)
        try:
            return utils.read_image(path, image_format)
        except Exception as error:  # decoders raise anything
            # Their messages name the file, which is gone when they are read.
            raise OSError(str(error).replace(path, "it")) from error
