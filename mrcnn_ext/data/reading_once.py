"""What is read from a dataset is kept while a training is prepared, where several read the same."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator

__all__ = ["file_key", "kept", "reading_once"]

_kept: dict | None = None


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """Within it, annotation files that do not change are parsed once by this process: their registration, ``--recipe``,
    the check before training and the training loader share what they read. It is let go afterwards, so that nothing
    stale is evaluated."""
    global _kept
    outer = _kept
    if outer is None:
        _kept = {}
    try:
        yield
    finally:
        _kept = outer


def kept(key: Hashable, make: Callable):
    """What ``make`` gave for a key within `reading_once`; elsewhere what it gives now."""
    if _kept is None:
        return make()
    if key not in _kept:
        _kept[key] = make()
    return _kept[key]


def file_key(path: str | os.PathLike) -> tuple:
    """Another one when the file has changed.

    Raises:
        FileNotFoundError: there is none.
    """
    stat = os.stat(path)
    return os.path.abspath(path), stat.st_mtime_ns, stat.st_size
