"""Tables of an evaluation that people read: COCO's, by class, and Cityscapes' under the published rows.

Runs without detectron2.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..files import replacing
from .published import CITYSCAPES_COLUMNS, CITYSCAPES_ROWS

__all__ = ["Table", "draw_tables", "result_tables", "write_tables"]

# Results of evaluators -> what they are of, in the order of the rows.
_TASKS = {
    "bbox": "box",
    "segm": "mask",
    "boundary": "boundary",
    "keypoints": "keypoints",
    "coco_bbox": "box",
    "coco_segm": "mask",
}
_METRICS = {"AP": "AP", "AP50": "AP50", "AP75": "AP75", "APs": "AP S", "APm": "AP M", "APl": "AP L"}
_CITYSCAPES_CLASSES = {"mcycle": "motorcycle"}
_MOST_BARS = 40  # classes of a picture


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        title: over it.
        head: names of the columns; the first ``labels`` are of texts.
        rows: texts, then numbers in points; None or NaN where there is none.
        labels: columns that hold texts.
        own: rows, from 0, that are this evaluation's, where others are published.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple, ...]
    labels: int = 1
    own: tuple[int, ...] = ()

    def cells(self) -> list[list[str]]:
        """The rows as texts: numbers with one digit, "–" where there is none."""
        return [
            [*map(str, row[: self.labels]), *("–" if _is_none(v) else f"{v:.1f}" for v in row[self.labels :])]
            for row in self.rows
        ]

    def markdown(self) -> str:
        """The title as a heading of the second level, and the rows; own ones in bold."""
        lines = [f"## {self.title}", "", "| " + " | ".join(self.head) + " |"]
        lines.append(
            "| " + " | ".join(["---"] * self.labels + ["---:"] * (len(self.head) - self.labels)) + " |"
        )
        for k, row in enumerate(self.cells()):
            row = [cell.replace("|", r"\|") for cell in row]
            lines.append(
                "| " + " | ".join(f"**{cell}**" if cell and k in self.own else cell for cell in row) + " |"
            )
        return "\n".join(lines) + "\n"


def _is_none(value) -> bool:
    return value is None or math.isnan(value)


def result_tables(results: Mapping[str, Mapping[str, float]], cityscapes_split: str = "") -> list[Table]:
    """The tables of an evaluator's results.

    Args:
        results: {"bbox": {"AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>", ...}, "segm", "keypoints",
            "boundary"}, in points; of Cityscapes "segm" is by its own measure, "coco_bbox" and "coco_segm" by COCO's.
        cityscapes_split: "val" or "test" of data that Cityscapes' evaluator evaluated; "" of COCO's.
    """
    tables = []
    by_coco = dict(results)
    if cityscapes_split and "segm" in results:
        tables.append(_cityscapes_table(by_coco.pop("segm"), cityscapes_split))
    by_coco = {task: by_coco[task] for task in _TASKS if isinstance(by_coco.get(task), Mapping)}
    if by_coco:
        # Nobody's keypoints are small: COCO has no such column for them.
        rows = tuple((_TASKS[task], *(found.get(m) for m in _METRICS)) for task, found in by_coco.items())
        title = "Average precision by COCO's measure" if cityscapes_split else "Average precision"
        tables.append(Table(title, ("", *_METRICS.values()), rows))
    classes = list(
        dict.fromkeys(key[3:] for found in by_coco.values() for key in found if key.startswith("AP-"))
    )
    having = [task for task, found in by_coco.items() if any(key.startswith("AP-") for key in found)]
    if classes:
        rows = tuple((name, *(by_coco[task].get(f"AP-{name}") for task in having)) for name in classes)
        title = "AP of each class" + (" by COCO's measure" if cityscapes_split else "")
        tables.append(Table(title, ("class", *(_TASKS[task] for task in having)), rows))
    others = {
        task: found for task, found in results.items() if task not in _TASKS and isinstance(found, Mapping)
    }
    for task, found in others.items():
        rows = tuple((str(key), value) for key, value in found.items() if isinstance(value, (int, float)))
        if rows:
            tables.append(Table(task, ("", task), rows))
    return tables


def _cityscapes_table(found: Mapping[str, float], split: str) -> Table:
    on_test = split == "test"
    classes = CITYSCAPES_COLUMNS[3:]
    own = (
        None if on_test else found["AP"],
        found["AP"] if on_test else None,
        found["AP50"],
        *(found.get(f"AP-{_CITYSCAPES_CLASSES.get(name, name)}") for name in classes),
    )
    published = tuple((name, data, *values) for name, data, values in CITYSCAPES_ROWS)
    title = "Cityscapes, instance segmentation; published AP50 and classes are of test"
    head = ("", "training data", *CITYSCAPES_COLUMNS)
    return Table(title, head, (*published, (f"this run, on {split}", "", *own)), 2, (len(published),))


def write_tables(tables: Sequence[Table], folder: str | os.PathLike, name: str) -> list[str]:
    """Writes ``results.csv`` (table, row, column, value: every number as it is), ``results.md`` and ``results.png``.

    Args:
        tables: by `result_tables`.
        folder: is made if it is not there.
        name: of the dataset, over the tables.

    Returns:
        The paths.
    """
    folder = os.fspath(folder)
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, f"results.{suffix}") for suffix in ("csv", "md", "png")]
    with replacing(paths[0], "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["table", "row", "column", "value"])
        for table in tables:
            for row in table.rows:
                label = ", ".join(str(text) for text in row[: table.labels] if text)
                for column, value in zip(table.head[table.labels :], row[table.labels :], strict=True):
                    writer.writerow([table.title, label, column, "" if _is_none(value) else value])
    with replacing(paths[1], "w") as file:
        file.write(f"# {name}\n\n" + "\n".join(table.markdown() for table in tables))
    figure = draw_tables(tables, name)
    with replacing(paths[2]) as file:
        figure.savefig(file, format="png", dpi=110)
    return paths


def draw_tables(tables: Sequence[Table], name: str):
    """The tables as a matplotlib figure; those of many rows as bars."""
    from matplotlib.figure import Figure

    heights = [_bar_height(t) if _as_bars(t) else 0.42 + 0.26 * (len(t.rows) + 1) for t in tables]
    widest = max(sum(_widths(t)) for t in tables) if tables else 60
    figure = Figure(figsize=(max(6.0, 0.085 * widest), 0.45 + sum(heights)), layout="constrained")
    figure.suptitle(name, fontsize=11, x=0.01, ha="left", weight="bold")
    panels = figure.subplots(
        max(len(tables), 1), 1, squeeze=False, gridspec_kw={"height_ratios": heights or [1]}
    )
    for axes, table in zip(panels[:, 0], tables, strict=False):
        axes.set_title(table.title, fontsize=9, loc="left")
        (_draw_bars if _as_bars(table) else _draw_table)(axes, table)
    return figure


def _as_bars(table: Table) -> bool:
    return table.head[0] == "class" and len(table.rows) > 1


def _bar_rows(table: Table) -> list[tuple]:
    """The classes that have an AP, the best first."""

    def rank(row):
        known = [value for value in row[1:] if not _is_none(value)]
        return sum(known) / len(known)

    having = [row for row in table.rows if not all(map(_is_none, row[1:]))]
    return sorted(having, key=rank, reverse=True)


def _bar_height(table: Table) -> float:
    return 0.7 + (0.12 + 0.09 * (len(table.head) - 1)) * min(max(len(_bar_rows(table)), 1), _MOST_BARS)


def _widths(table: Table) -> list[int]:
    cells = [list(table.head), *table.cells()]
    return [max(len(row[k]) for row in cells) + 3 for k in range(len(table.head))]


def _draw_table(axes, table: Table) -> None:
    axes.set_axis_off()
    widths = _widths(table)
    drawn = axes.table(
        cellText=table.cells(),
        colLabels=table.head,
        colWidths=[width / sum(widths) for width in widths],
        cellLoc="right",
        bbox=(0, 0, 1, 1),
    )
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    for (row, column), cell in drawn.get_celld().items():
        cell.set_linewidth(0.4)
        cell.set_edgecolor("#d1d5db")
        if column < table.labels:
            cell.get_text().set_ha("left")
        if row == 0 or row - 1 in table.own:
            cell.get_text().set_weight("bold")
            cell.set_facecolor("#dbeafe" if row else "#f3f4f6")


def _draw_bars(axes, table: Table) -> None:
    """Bars of each class, the best above; of more classes than there is room for, the best and the worst. Classes
    without objects are left out."""
    colors = {"box": "#2563eb", "mask": "#ea580c", "keypoints": "#16a34a", "boundary": "#9333ea"}
    rows, notes = _bar_rows(table), []
    without = len(table.rows) - len(rows)
    if len(rows) > _MOST_BARS:
        notes.append(f"the best and the worst {_MOST_BARS // 2} of {len(rows)}")
        rows = rows[: _MOST_BARS // 2] + rows[-(_MOST_BARS // 2) :]
    if without:
        notes.append(f"{without} have no objects")
    if notes:
        axes.set_title(f"{table.title} ({'; '.join(notes)})", fontsize=9, loc="left")
    series = table.head[1:]
    thick = 0.8 / len(series)
    for k, name in enumerate(series):
        places = [i + (k - (len(series) - 1) / 2) * thick for i in range(len(rows))]
        values = [0.0 if _is_none(row[1 + k]) else row[1 + k] for row in rows]
        axes.barh(places, values, thick * 0.9, color=colors.get(name, "#6b7280"), label=name)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=7)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("AP", fontsize=8)
    axes.grid(axis="x", linewidth=0.4, color="#e5e7eb")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, loc="lower right", frameon=False)
