"""Results of a study's trainings, and their files, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ..files import replacing

__all__ = ["kept_file", "kept_result"]


def kept_result(path: Path, arguments: dict, make: Callable[[], dict]) -> dict:
    """A result that is on disk, if it was made with the same arguments; otherwise it is made, and kept.

    Args:
        path: a JSON file; its folder is made.
        arguments: what the result depends on, as JSON holds it. They are kept with it, under "arguments".
        make: gives the result, plain values by name.
    """
    if path.is_file():
        result = json.loads(path.read_text())
        if result.get("arguments") == arguments:
            return result
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {**make(), "arguments": arguments}
    with replacing(path, "w") as file:
        json.dump(result, file, indent=1)
    return result


def kept_file(path: Path, arguments: dict, make: Callable[[IO[bytes]], None]) -> None:
    """Makes a file, if it was not made with the same arguments before.

    Args:
        path: of any format; its folder is made. ``<path>.json`` beside it has the arguments.
        arguments: what the file depends on, as JSON holds it.
        make: writes it.
    """
    record = path.with_name(f"{path.name}.json")
    if path.is_file() and record.is_file() and json.loads(record.read_text()) == arguments:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)  # it would speak for the next file
    with replacing(path) as file:
        make(file)
    with replacing(record, "w") as file:
        json.dump(arguments, file, indent=1)
