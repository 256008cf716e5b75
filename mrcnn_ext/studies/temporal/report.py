"""Tables and plots of the study's results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ...files import replacing
from .scores import SHOWN
from .study import HEADS

__all__ = ["history_table", "plot_history", "study_table"]

_SINGLE = "single"  # what the others are laid beside
_COLORS = {"lstm": "#1f77b4", "lstm_lying": "#17becf", "unipose": "#d62728"}
_PLATEAU = 5  # frames, UniPose-LSTM and LSTM Pose Machines


def study_table(results: dict) -> str:
    """Markdown, a row for each head: mean and standard deviation over the seeds, over whole clips.

    Args:
        results: of `run_study`.
    """
    rows = [
        ["head", "seeds", *SHOWN, "parameters"],
        ["---"] * (len(SHOWN) + 3),
    ]
    for name, by_seed in results.items():
        cells = [_spread([result["all"][key] for result in by_seed.values()], key) for key in SHOWN]
        parameters = next(iter(by_seed.values()))["parameters"]
        rows.append([HEADS[name].title, str(len(by_seed)), *cells, f"{parameters / 1000:.0f} k"])
    for name, by_seed in results.items():
        if name != _SINGLE and _SINGLE in results:
            shared = [seed for seed in by_seed if seed in results[_SINGLE]]
            cells = [
                _spread([by_seed[s]["all"][key] - results[_SINGLE][s]["all"][key] for s in shared], key, True)
                for key in SHOWN
            ]
            rows.append([f"{HEADS[name].title}, more than single frames", str(len(shared)), *cells, ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _spread(values: list[float], key: str, signed: bool = False) -> str:
    digits = 2 if key == "jitter" else 1
    sign = "+" if signed else ""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:{sign}.{digits}f}"
    return f"{np.mean(values):{sign}.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"


def history_table(results: dict, key: str = "AP") -> str:
    """Markdown: a metric by the number of frames that a head sees, on the same last frames of all clips."""
    counts = sorted(
        {int(n) for _, by_seed in results.items() for r in by_seed.values() for n in r["history"]}
    )
    rows = [[f"{key} with frames", *map(str, counts)], ["---"] * (len(counts) + 1)]
    for name, by_seed in results.items():
        cells = []
        for count in counts:
            found = [r["history"][str(count)][key] for r in by_seed.values() if str(count) in r["history"]]
            cells.append(_spread(found, key))
        rows.append([HEADS[name].title, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot_history(results: dict, path: Path) -> None:
    """AP, AP of occluded joints and PCK by the number of frames, with the spread over the seeds, beside the number
    of frames at which the published accuracies stop growing.

    Args:
        results: of `run_study`.
        path: picture to write, its format by its ending.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = {"AP": "keypoint AP", "AP occluded": "AP of occluded joints", "PCK@0.05": "PCK@0.05 (%)"}
    for axes, (key, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        axes.axvline(_PLATEAU, color="#999999", linestyle=":", linewidth=1)
        for name, by_seed in results.items():
            curves = [{int(n): metrics[key] for n, metrics in r["history"].items()} for r in by_seed.values()]
            counts = sorted(curves[0])
            values = np.array([[curve[n] for n in counts] for curve in curves])
            mean, spread = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else 0 * values[0]
            if len(counts) == 1:
                color = "#555555" if name == _SINGLE else "#bbbbbb"
                axes.axhline(mean[0], color=color, linestyle="--", linewidth=1, label=HEADS[name].title)
                continue
            axes.plot(
                counts, mean, marker="o", markersize=3, color=_COLORS.get(name), label=HEADS[name].title
            )
            axes.fill_between(counts, mean - spread, mean + spread, color=_COLORS.get(name), alpha=0.15)
        axes.set_xlabel("frames seen (dotted: published plateau)")
        axes.set_title(title, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=3)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=120)
