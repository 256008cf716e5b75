"""What the benchmarks write: rows as CSV, and rows of the project's table of targets."""

import csv
from dataclasses import dataclass
from pathlib import Path

from ..files import replacing

__all__ = ["Target", "write_csv"]


@dataclass(frozen=True)
class Target:
    """A row of the target table."""

    what: str
    beside: str
    measured: float
    wanted: float
    at_least: bool = True
    remark: str = ""  # what it was computed from

    @property
    def met(self) -> bool:
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "MISSED"
        return (
            f"{self.what:58} {self.beside:26} {self.measured:7.2f}x   {sign} {self.wanted:g}x   {verdict}"
            + (f"   {self.remark}" if self.remark else "")
        )


def write_csv(rows: list[dict], path: Path) -> None:
    """Rows may have different columns; a cell that a row lacks is empty. The file is whole or as it was."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path, "w") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
