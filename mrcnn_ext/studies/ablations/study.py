"""The rows and tables of ``configs/ablations/rows.yaml``."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...config_files import get_config_file

__all__ = ["Comparison", "Entry", "Row", "Study", "Table", "load_study"]


@dataclass(frozen=True)
class Row:
    """A config to train: a base file and the lines that differ from it.

    Attributes:
        name: unique in the study.
        base: path of the base config.
        options: config key -> value, in place of the base's.
        start: name of the run whose backbone and RPN it starts from; "" for none.
    """

    name: str
    base: Path
    options: dict
    start: str = ""


@dataclass(frozen=True)
class Entry:
    """A row's place in a table.

    Attributes:
        row: its name.
        label: what the table calls it.
        paper: the paper's figures, one per metric of the table, None where it has none.
    """

    row: str
    label: str
    paper: tuple


@dataclass(frozen=True)
class Comparison:
    """That one row is expected ahead of another by a metric."""

    ahead: str
    behind: str
    metric: str


@dataclass(frozen=True)
class Table:
    """Rows laid out together.

    Attributes:
        name: unique in the study.
        title: its heading.
        source: where the paper has it; "" for a table of our own.
        metrics: "<task>/<metric>" each, a column.
        entries: its rows.
        comparisons: what to say about them.
        head: "mask" or "keypoint" adds the parameters of that head and times; "" for neither.
    """

    name: str
    title: str
    source: str
    metrics: tuple[str, ...]
    entries: tuple[Entry, ...]
    comparisons: tuple[Comparison, ...]
    head: str = ""


@dataclass(frozen=True)
class Study:
    """
    Attributes:
        scenes: arguments of the scenes: preset, num_train, num_val, seed, and fields of the preset.
        starts: runs that rows start from, by name.
        rows: by name.
        tables: by name.
    """

    scenes: dict
    starts: dict[str, Row]
    rows: dict[str, Row]
    tables: dict[str, Table]

    def select(self, names) -> list[Row]:
        """The rows that tables or rows of these names need, each once; all rows for no names.

        Raises:
            ValueError: neither a table nor a row.
        """
        wanted = set()
        for name in names or self.tables:
            if name in self.tables:
                wanted.update(entry.row for entry in self.tables[name].entries)
            elif name in self.rows:
                wanted.add(name)
            else:
                known = ", ".join([*self.tables, *self.rows])
                raise ValueError(f"no table or row {name!r}; there are {known}")
        return [row for name, row in self.rows.items() if name in wanted]

    def digest(self, row: Row) -> str:
        """Changes with whatever the results of the row depend on: its config, its start's, the scenes."""
        from fvcore.common.config import CfgNode  # without it the tool says so, and not this module

        content = [CfgNode.load_yaml_with_base(str(row.base)), row.options, self.scenes]
        if row.start:
            content.append(self.digest(self.starts[row.start]))
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def with_options(self, options: dict) -> "Study":
        """This study with further config lines in every row, the starts included."""

        def extended(rows):
            return {
                name: Row(name, row.base, {**row.options, **options}, row.start) for name, row in rows.items()
            }

        return Study(self.scenes, extended(self.starts), extended(self.rows), self.tables)


def load_study(file=None) -> Study:
    """Reads a study.

    Args:
        file: yaml; default ``configs/ablations/rows.yaml``. The base configs are beside it.

    Raises:
        ValueError: a row, a start or a metric that is used is not there, or figures of the paper are missing.
    """
    file = Path(file or get_config_file("ablations/rows.yaml"))
    content = yaml.safe_load(file.read_text())
    starts = {}
    for name, options in content["starts"].items():
        base = file.parent / options.pop("base")
        starts[name] = Row(name, base, options)
    rows = {}
    for group in content["rows"]:
        if group["start"] not in starts:
            raise ValueError(f"{file}: rows of {group['base']} start from {group['start']!r}, not in starts")
        for name, options in group["rows"].items():
            rows[name] = Row(name, file.parent / group["base"], options, group["start"])
    tables = {name: _table(file, name, table, rows) for name, table in content["tables"].items()}
    return Study(content["scenes"], starts, rows, tables)


def _table(file, name, content, rows) -> Table:
    metrics = tuple(content["metrics"])
    entries = []
    for row, entry in content["rows"].items():
        paper = tuple(entry.get("paper", [None] * len(metrics)))
        if len(paper) != len(metrics):
            raise ValueError(
                f"{file}: {name}, {row}: {len(paper)} figures of the paper for {len(metrics)} metrics"
            )
        entries.append(Entry(row, entry["label"], paper))
    comparisons = tuple(Comparison(*expected) for expected in content.get("expect", ()))
    listed = {entry.row for entry in entries}
    for missing in listed - set(rows):
        raise ValueError(f"{file}: {name}: there is no row {missing!r}")
    for comparison in comparisons:
        if not {comparison.ahead, comparison.behind} <= listed or comparison.metric not in metrics:
            raise ValueError(
                f"{file}: {name}: expect names a row or metric that the table lacks: {comparison}"
            )
    return Table(
        name,
        content["title"],
        content.get("paper", ""),
        metrics,
        tuple(entries),
        comparisons,
        content.get("costs", ""),
    )
