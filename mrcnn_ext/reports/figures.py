"""The curves of a report, by matplotlib's figure class: no display, no global state."""

from __future__ import annotations

import base64
import io
import itertools
import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .history import TrainingHistory
from .keypoints import KeypointError
from .matching import Matches
from .precision import TASK_NAMES, TaskResult
from .scores import Reliability, ThresholdCurves

__all__ = [
    "as_data_uri",
    "class_precision_figure",
    "confusion_figure",
    "keypoint_figure",
    "losses_figure",
    "precision_figure",
    "precision_recall_figure",
    "reliability_figure",
    "threshold_figure",
    "timing_figure",
    "training_figure",
]

TRAINING, VALIDATION = "#2563eb", "#ea580c"
TASK_COLORS = {"bbox": "#2563eb", "segm": "#ea580c", "keypoints": "#16a34a", "boundary": "#9333ea"}
_MOST_LINES = 10  # of classes, that a person can tell apart in one picture
_MOST_NUMBERS = 16  # classes of a confusion matrix whose cells have room for a number
_GRAY, _INK = "#6b7280", "#111827"


def as_data_uri(figure: Figure) -> str:
    """The figure as SVG in a URI for ``<img src>``; the same figure always gives the same."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mrcnn_ext"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def losses_figure(history: TrainingHistory) -> Figure:
    """Each loss in its own panel, with training and validation."""
    names = history.losses
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(2.9 * columns, 0.4 + 2.2 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)  # between a row's label and the next one's titles
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for axes, name in zip(grid, names, strict=False):
        _draw_loss(axes, history, name)
        axes.set_title(name, fontsize=9)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    _shared_legend(figure, grid[0])
    return figure


def _draw_loss(axes, history, name):
    axes.plot(*history.points(name), color=TRAINING, linewidth=1.3, label="training")
    points = history.points(f"val/{name}")
    if points[0]:
        look = {"linewidth": 1.3, "marker": "o", "markersize": 4, "clip_on": False}
        axes.plot(*points, color=VALIDATION, label="validation", **look)
    _plain(axes)
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylim(bottom=0)


def precision_figure(history: TrainingHistory, dataset: str = "") -> Figure:
    """AP and AP50 of each task over the iterations."""
    figure = Figure(figsize=(4.2, 3.0), layout="constrained")
    axes = figure.subplots()
    _draw_precision(axes, history, dataset)
    return figure


def _draw_precision(axes, history, dataset):
    for short, name in history.precisions(dataset).items():
        task, metric = short.split("/")
        if metric not in ("AP", "AP50"):
            continue
        label = f"{TASK_NAMES.get(task, task)} {metric}"
        style = {
            "linestyle": "-" if metric == "AP" else ":",
            "linewidth": 1.6,
            "marker": "o",
            "markersize": 4,
        }
        axes.plot(*history.points(name), color=TASK_COLORS.get(task, _GRAY), label=label, **style)
    _plain(axes)
    axes.set(xlabel="iteration", ylabel="AP (points)", ylim=(0, 100))
    if axes.has_data():
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))


def class_precision_figure(history: TrainingHistory, dataset: str = "") -> Figure | None:
    """AP of each class over the iterations, a panel a task; None where there is none, or too many to tell apart."""
    classes = {}
    for short, name in history.precisions(dataset).items():
        task, metric = short.split("/")
        values = history.points(name)
        if metric.startswith("AP-") and len(values[0]) > 1:
            classes.setdefault(task, {})[metric.removeprefix("AP-")] = values
    classes = {task: lines for task, lines in classes.items() if 1 < len(lines) <= _MOST_LINES}
    if not classes:
        return None
    figure = Figure(figsize=(1.0 + 1.85 * len(classes), 3.0), layout="constrained")
    names = list(dict.fromkeys(name for lines in classes.values() for name in lines))
    colors = dict(zip(names, _colors(len(names)), strict=True))
    grid = figure.subplots(1, len(classes), squeeze=False)[0]
    for axes, (task, lines) in zip(grid, classes.items(), strict=True):
        for name, points in lines.items():
            axes.plot(*points, color=colors[name], marker="o", markersize=3, linewidth=1.3, label=name)
        _plain(axes)
        axes.set(xlabel="iteration", ylim=(0, 100))
        axes.set_title(f"{TASK_NAMES.get(task, task)} AP", fontsize=9)
    most = max(grid, key=lambda axes: len(axes.lines))
    figure.legend(*most.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center")
    return figure


def training_figure(history: TrainingHistory, title: str = "") -> Figure:
    """The total loss, its parts, and the AP of all data sets, side by side: a training at a glance."""
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    total, parts, precision = figure.subplots(1, 3)
    _draw_loss(total, history, "total_loss")
    total.set_title("total loss", fontsize=10)
    names = [name for name in history.losses if name != "total_loss"]
    for name, color in zip(names, _colors(len(names)), strict=True):
        parts.plot(*history.points(name), color=color, linewidth=1.2, label=name.removeprefix("loss_"))
        parts.plot(*history.points(f"val/{name}"), color=color, linestyle="", marker="o", markersize=4)
    parts.set_title("losses (points: validation)", fontsize=10)
    parts.set_yscale("log")
    parts.set_xlabel("iteration", fontsize=8)
    datasets = history.datasets or [""]
    # Names that begin alike would fill the picture.
    alike = os.path.commonprefix(datasets).rpartition("_")[0] if len(datasets) > 1 else ""
    for dataset, marker in zip(datasets, itertools.cycle("os^v")):
        for short, name in history.precisions(dataset).items():
            task, metric = short.split("/")
            if metric not in ("AP", "AP50"):
                continue
            precision.plot(
                *history.points(name),
                color=TASK_COLORS.get(task, _GRAY),
                linestyle="-" if metric == "AP" else ":",
                marker=marker,
                markersize=5,
                label=" ".join(
                    filter(None, (dataset.removeprefix(f"{alike}_"), TASK_NAMES.get(task, task), metric))
                ),
            )
    precision.set_ylim(0, 100)
    precision.set_xlabel("iteration", fontsize=8)
    precision.set_title("AP on unseen images (points)", fontsize=10)
    for axes in (total, parts, precision):
        _plain(axes)
        # Below the axes: within them it would lie on the curves.
        if axes.has_data():
            axes.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return figure


def precision_recall_figure(results: dict[str, TaskResult]) -> Figure:
    """A panel a task: the mean over the classes at three thresholds, and each class at 0.5."""
    figure = Figure(figsize=(0.9 + 3.3 * max(1, len(results)), 3.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # the ends of two axes, 1.0 and 0.0, apart
    grid = figure.subplots(1, max(1, len(results)), squeeze=False)[0]
    names = list(dict.fromkeys(item.name for result in results.values() for item in result.classes))
    colors = dict(zip(names, _colors(len(names)), strict=True)) if len(names) <= _MOST_LINES else {}
    for axes, result in zip(grid, results.values(), strict=False):
        # The classes over the means, and thin: neither hides the other.
        for (threshold, curve), style in zip(result.curves.items(), ("-", "--", ":"), strict=False):
            look = {"color": _INK, "linewidth": 2.6, "linestyle": style, "alpha": 0.35, "zorder": 2}
            axes.plot(result.recalls, curve, label=f"mean, {threshold:g}", **look)
        for item in result.classes if len(names) > 1 else ():
            color, label = colors.get(item.name, "#cbd5e1"), item.name if colors else None
            axes.plot(result.recalls, item.curve, color=color, linewidth=1.1, label=label, zorder=3)
        measure = "OKS" if result.task == "keypoints" else "IoU"
        axes.set_title(f"{result.name}: classes at {measure} 0.5", fontsize=9)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        _plain(axes)
    most = max(grid, key=lambda axes: len(axes.lines))
    if most.has_data():
        figure.legend(
            *most.get_legend_handles_labels(), fontsize=8, frameon=False, loc="outside right center"
        )
    return figure


def threshold_figure(curves: dict[str, ThresholdCurves]) -> Figure:
    """Precision, recall and F1 above each score, a panel a task."""
    figure = Figure(figsize=(3.3 * max(1, len(curves)), 3.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    grid = figure.subplots(1, max(1, len(curves)), squeeze=False)[0]
    for axes, (task, curve) in zip(grid, curves.items(), strict=False):
        for name, label, color in (
            ("precision", "precision", "#2563eb"),
            ("recall", "recall", "#ea580c"),
            ("f1", "F1", _INK),
        ):
            axes.plot(curve.thresholds, getattr(curve, name), color=color, linewidth=1.4, label=label)
        threshold, best = curve.best
        if best:
            axes.plot([threshold], [best], "o", color=_INK, markersize=5, clip_on=False)
        # In the title: beside the point it would lie on the curves.
        told = f": best F1 {best:.2f} at {threshold:.2f}" if best else ""
        axes.set_title(f"{TASK_NAMES[task]}{told}", fontsize=9)
        axes.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.05))
        _plain(axes)
    _shared_legend(figure, grid[0])
    return figure


def confusion_figure(matches: Matches, names: Sequence[str]) -> Figure:
    """Classes that were taken for each other; each row in shares of its objects.

    Args:
        matches: the counts.
        names: of the classes of ``matches.category_ids``.
    """
    counts = matches.confusion
    size = len(counts)
    side = min(9.5, 1.8 + 0.45 * size) if size <= _MOST_NUMBERS else 9.0
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [_short(name) for name in names]
    font = 9 if size <= _MOST_NUMBERS else max(3.5, 420 / size / 1.35)
    axes.set_xticks(
        range(size), [*labels, "missed"], rotation=45 if size <= _MOST_NUMBERS else 90, fontsize=font
    )
    if size <= _MOST_NUMBERS:
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_yticks(range(size), [*labels, "nothing there"], fontsize=font)
    axes.set(xlabel="found as", ylabel="is")
    axes.axhline(size - 1.5, color="white", linewidth=3)
    axes.axvline(size - 1.5, color="white", linewidth=3)
    if size <= _MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.55 else _INK
                axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8.5, color=color)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def reliability_figure(diagrams: dict[str, Reliability]) -> Figure:
    """Reliability diagrams, a panel a task: below the diagonal scores promise too much."""
    figure = Figure(figsize=(3.3 * max(1, len(diagrams)), 3.5), layout="constrained")
    grid = figure.subplots(2, max(1, len(diagrams)), squeeze=False, height_ratios=(4, 1), sharex=True)
    for axes, below, (task, diagram) in zip(*grid, diagrams.items(), strict=False):
        width = diagram.edges[1] - diagram.edges[0]
        middles = diagram.edges[:-1] + width / 2
        axes.bar(middles, np.nan_to_num(diagram.precision), width * 0.94, color=TASK_COLORS[task], alpha=0.75)
        axes.plot([0, 1], [0, 1], color=_GRAY, linewidth=1, linestyle="--")
        axes.plot(diagram.confidence, diagram.precision, "o", color=_INK, markersize=3)
        axes.set_title(f"{TASK_NAMES[task]}: ECE {diagram.ece:.3f}", fontsize=9)
        axes.set(ylabel="precision", xlim=(0, 1), ylim=(0, 1))
        below.bar(middles, diagram.counts, width * 0.94, color="#9ca3af")
        below.set(xlabel="score", ylabel="detections")
        if diagram.counts.any():
            below.set_yscale("log")
            below.set_ylim(bottom=0.5)
            below.yaxis.set_minor_formatter(NullFormatter())
        for part in (axes, below):
            _plain(part)
    return figure


def keypoint_figure(errors: Sequence[KeypointError]) -> Figure:
    """The error of each keypoint relative to the object's scale: median, and the middle half as a line."""
    figure = Figure(figsize=(4.8, 0.9 + 0.24 * len(errors)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(errors))
    low, median, high = 100 * np.stack([error.relative for error in errors], axis=1)
    axes.barh(places, np.nan_to_num(median), 0.62, color=TASK_COLORS["keypoints"], alpha=0.75)
    axes.hlines(places, low, high, color=_INK, linewidth=1.3)
    axes.set_yticks(places, [error.name.replace("_", " ") for error in errors], fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlabel("distance in % of the object's scale (bar: median; line: middle half)", fontsize=8.5)
    axes.set_xlim(left=0)
    _plain(axes)
    return figure


def timing_figure(history: TrainingHistory) -> Figure:
    """Seconds per iteration, and how much of them was spent waiting for data."""
    figure = Figure(figsize=(5.6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*history.points("time"), color=TRAINING, linewidth=1.3, label="iteration")
    axes.plot(*history.points("data_time"), color=VALIDATION, linewidth=1.3, label="of it, waiting for data")
    _plain(axes)
    axes.set(xlabel="iteration", ylabel="seconds", ylim=(0, None))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _plain(axes):
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _shared_legend(figure, axes):
    handles = axes.get_legend_handles_labels()
    if handles[0]:
        figure.legend(*handles, fontsize=8.5, frameon=False, loc="outside upper right", ncols=len(handles[0]))


def _colors(count):
    """So many that can be told apart, dark enough for white paper."""
    colors = matplotlib.colormaps["tab10"].colors
    return [colors[k % len(colors)] for k in range(count)]


def _short(name):
    return name if len(name) <= 16 else name[:15] + "…"
