"""Image files that say whether they are as this package wrote them. Needs nothing but the standard library."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib

__all__ = ["is_as_marked", "marked"]

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_AFTER_HEADER = len(_PNG) + 25  # behind the signature and the chunk IHDR
_KEYWORD = b"mrcnn_ext"


def marked(content: bytes) -> bytes:
    """The bytes of an image file with a digest of themselves.

    In a JPEG it is a comment (COM), in a PNG a text chunk (tEXt); to other formats it is appended, where decoders do
    not look.
    """
    place, mark = _mark_of(content)
    return content[:place] + mark + content[place:]


def is_as_marked(path: str | os.PathLike) -> bool:
    """Whether a file is one of `marked`, and has not been changed since."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return False
    place, mark = _mark_of(content)  # of another digest, but of the same place and length
    place = min(place, len(content) - len(mark))
    return place >= 0 and marked(content[:place] + content[place + len(mark) :]) == content


def _mark_of(content):
    """Where the mark is to be, and the mark."""
    text = _KEYWORD + b"\x00" + _digest(content)
    if content.startswith(_JPEG):
        return len(_JPEG), b"\xff\xfe" + struct.pack(">H", len(text) + 2) + text
    if content.startswith(_PNG):
        checksum = zlib.crc32(b"tEXt" + text)
        return _AFTER_HEADER, struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", checksum)
    return len(content), text


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:16].encode()
