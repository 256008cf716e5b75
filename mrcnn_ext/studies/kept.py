"""Results of a study's trainings, each made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ..files import replacing

__all__ = ["kept_result"]


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
