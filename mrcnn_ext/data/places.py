"""Where data lie whose files were named elsewhere: in another working directory, or before a move. Runs without
detectron2."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["absolute", "find_again"]


def absolute(entry: Sequence) -> list:
    """An entry of ``DATASETS.COCO_FORMAT`` whose paths are valid from every working directory.

    Args:
        entry: [name, annotation file, image folder], and perhaps a description, or a file of it.
    """
    name, annotations, images, *described = entry
    paths = [os.path.abspath(os.path.expanduser(path)) for path in (annotations, images)]
    return [
        name,
        *paths,
        *(os.path.abspath(os.path.expanduser(d)) if isinstance(d, str) else d for d in described),
    ]


def find_again(entry: Sequence, folder: str | os.PathLike) -> list:
    """An entry of ``DATASETS.COCO_FORMAT`` with paths to what is there now.

    What is not where the entry says, seen from the working directory, is looked for as it would lie if the data and
    ``folder`` had been moved or copied together: under ``folder`` and the folders above it, annotations and images by
    the same shift.

    Args:
        entry: as of `absolute`.
        folder: that has the config or checkpoint which names the data.

    Returns:
        list: the entry; as it was where nothing was found.
    """
    name, *places = entry
    if all(map(os.path.exists, places[:2])):
        return list(entry)
    for moved in _moves(places, Path(os.path.abspath(folder))):
        if os.path.isfile(moved[0]) and os.path.isdir(moved[1]):
            return [name, *moved]
    return list(entry)


def _moves(places: Sequence, folder: Path) -> Iterator[list]:
    parts = Path(places[0]).parts
    # Of an absolute path the last two parts at least: a file's own name is too little to know it by.
    first = range(1, len(parts) - 1) if os.path.isabs(places[0]) else (0,)
    for above in (folder, *folder.parents):
        for k in first:
            before = Path(*parts[:k])
            yield [_shifted(place, before, above) for place in places]


def _shifted(place, before: Path, above: Path):
    if not isinstance(place, str):
        return place
    path = Path(place)
    if path.is_absolute() != before.is_absolute():
        return place
    return str(above / path.relative_to(before)) if path.is_relative_to(before) else place
