"""What a training wrote into ``metrics.json``, by name."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping

__all__ = ["TrainingHistory"]


class TrainingHistory:
    """Values over the iterations.

    Args:
        rows: {"iteration": number, name: value, ...} each, in any order; the last value of an iteration counts, and
            what is not finite is left out.
    """

    def __init__(self, rows: Iterable[Mapping] = ()):
        values = defaultdict(dict)
        for row in rows:
            for name, value in row.items():
                if name != "iteration" and isinstance(value, (int, float)) and math.isfinite(value):
                    values[name][row["iteration"]] = value
        self._values = {name: sorted(points.items()) for name, points in values.items()}

    @classmethod
    def read(cls, path: str | os.PathLike, more: Iterable[Mapping] = ()) -> TrainingHistory:
        """The rows of a file, and ``more`` behind them; no file is no rows. A last line that a kill cut short is left
        out.

        Raises:
            ValueError: the file is no ``metrics.json``.
        """
        rows = []
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                lines = [line for line in file if line.strip()]
            for number, line in enumerate(lines):
                row = _row(line)
                if row is None and number < len(lines) - 1:
                    raise ValueError(
                        f"{path}, line {number + 1}: not a line of a metrics.json, which has one object with an "
                        f'"iteration" a line: {line.strip()[:60]!r}'
                    )
                if row is not None:
                    rows.append(row)
        return cls([*rows, *more])

    def __bool__(self):
        return bool(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def names(self) -> list[str]:
        """Of everything that was written."""
        return list(self._values)

    @property
    def last_iteration(self) -> int | None:
        """The last one that has a value; None without any."""
        return max((points[-1][0] for points in self._values.values()), default=None)

    def points(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations, and the values there."""
        iterations, values = zip(*self._values.get(name, ()), strict=True) if name in self else ((), ())
        return list(iterations), list(values)

    @property
    def losses(self) -> list[str]:
        """Names of the losses, the total first: each may have training and validation values."""
        names = {name.removeprefix("val/") for name in self._values}
        return [name for name in sorted(names, key=lambda n: (n != "total_loss", n)) if _is_loss(name)]

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets whose average precisions were written, where there were several."""
        names = (name.split("/") for name in self._values)
        return list(
            dict.fromkeys(parts[0] for parts in names if len(parts) == 3 and parts[2].startswith("AP"))
        )

    def precisions(self, dataset: str = "") -> dict[str, str]:
        """Names of average precisions by what comes behind the data set's name: {"bbox/AP": "scenes_val/bbox/AP"}.

        Args:
            dataset: whose they are, where the training evaluated several; others are left out. A training with one has
                names without it.
        """
        found = {}
        for name in sorted(self._values):
            parts = name.split("/")
            if len(parts) >= 2 and parts[-1].startswith("AP") and (len(parts) == 2 or parts[0] == dataset):
                found["/".join(parts[-2:])] = name
        return found


def _is_loss(name):
    return name == "total_loss" or name.startswith("loss_")


def _row(line):
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("iteration"), int) else None
