"""Lays the results of a study beside the paper's figures."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from ...files import replacing
from .runner import read_result
from .study import Comparison, Study, Table

__all__ = ["Figure", "Verdict", "collect", "compare", "markdown", "plot", "write_report"]

_TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint", "boundary": "boundary"}


@dataclass(frozen=True)
class Figure:
    """A metric of a row over its seeds.

    Attributes:
        values: by seed.
    """

    values: dict[int, float]

    @property
    def mean(self) -> float:
        return mean(self.values.values())

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds; NaN of a single one."""
        return stdev(self.values.values()) if len(self.values) > 1 else float("nan")

    def __str__(self):
        return f"{self.mean:.1f}" + (f" ± {self.spread:.1f}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Verdict:
    """How a comparison came out.

    Attributes:
        margin: mean of the row expected ahead minus mean of the other, in points.
        spread: standard deviation of that difference of two single runs: the root of the sum of the squares of
            both rows' spreads. NaN where a row has one seed.
        wins, pairs: in how many of the seeds that both have the row expected ahead is so.
        paper: the paper's margin; None where it has none.
    """

    margin: float
    spread: float
    wins: int
    pairs: int
    paper: float | None

    def __str__(self):
        if self.pairs == 0:
            return "no seed in common"
        direction = "as expected" if self.margin > 0 else "THE OTHER WAY"
        text = f"**{self.margin:+.1f}**"
        if self.paper is not None:
            text += f" (paper {self.paper:+.1f})"
            direction = (
                "the paper's direction" if self.margin * self.paper > 0 else "THE OTHER WAY than the paper"
            )
        text += f": {direction}, ahead in {self.wins} of {self.pairs} seeds"
        if self.spread != self.spread:
            return text + "; one seed, no spread"
        above = "above" if abs(self.margin) > self.spread else "WITHIN"
        return text + f"; {above} the seed spread of {self.spread:.1f}"


def collect(study, output_dir: Path, seeds) -> dict[str, dict[int, dict]]:
    """Results of the study's rows: row -> seed -> result, without those of another config."""
    results = {}
    for name, row in study.rows.items():
        digest = study.digest(row)
        found = {seed: read_result(output_dir, name, seed, digest) for seed in seeds}
        results[name] = {seed: result for seed, result in found.items() if result is not None}
    return results


def figure(results: dict[int, dict], metric: str) -> Figure | None:
    """A metric of a row; None if no result has it."""
    values = {seed: r["metrics"][metric] for seed, r in results.items() if metric in r["metrics"]}
    return Figure(values) if values else None


def compare(table: Table, comparison: Comparison, results: dict) -> Verdict | None:
    """
    Args:
        table: that has the comparison.
        comparison: of two of its rows.
        results: as of `collect`.

    Returns:
        Verdict: None while a row has no result.
    """
    ahead = figure(results[comparison.ahead], comparison.metric)
    behind = figure(results[comparison.behind], comparison.metric)
    if ahead is None or behind is None:
        return None
    common = sorted(ahead.values.keys() & behind.values.keys())
    column = table.metrics.index(comparison.metric)
    paper = {entry.row: entry.paper[column] for entry in table.entries}
    theirs = paper[comparison.ahead], paper[comparison.behind]
    return Verdict(
        margin=ahead.mean - behind.mean,
        spread=(ahead.spread**2 + behind.spread**2) ** 0.5,
        wins=sum(ahead.values[seed] > behind.values[seed] for seed in common),
        pairs=len(common),
        paper=None if None in theirs else round(theirs[0] - theirs[1], 2),
    )


def markdown(study: Study, results: dict, tables: list[str] = None) -> str:
    """The report, in Markdown; tables without any result are left out.

    Args:
        study: whose rows they are.
        results: as of `collect`.
        tables: names of those to have; default all.
    """
    shown = [study.tables[name] for name in tables or study.tables]
    shown = [table for table in shown if any(results[entry.row] for entry in table.entries)]
    verdicts = [compare(table, comparison, results) for table in shown for comparison in table.comparisons]
    verdicts = [verdict for verdict in verdicts if verdict is not None]
    runs = sum(map(len, results.values()))
    scenes = study.scenes
    lines = [
        "# Ablations on synthetic scenes",
        "",
        f"{runs} runs of {sum(map(bool, results.values()))} rows, "
        f"{scenes['num_train']} scenes to learn from, {scenes['num_val']} others to be judged on. Rows of a table "
        "differ in the named lines of `configs/ablations/rows.yaml` only; a seed gives all of them the same data in "
        "the same order, and they start from the same backbone and RPN. AP in points on the scenes: mean ± standard "
        "deviation over the seeds; in brackets the paper's, on COCO. A margin's spread is the root of the sum of the "
        "squares of both rows' deviations. Times are the processor's, summed over the threads of a run.",
    ]
    if verdicts:
        lines += [
            "",
            f"Of {len(verdicts)} comparisons {sum(v.margin > 0 for v in verdicts)} go the expected way, "
            f"{sum(v.margin > v.spread for v in verdicts)} of them by more than the seed spread.",
        ]
    for table in shown:
        lines += ["", *_section(table, results)]
    return "\n".join(lines) + "\n"


def _section(table, results):
    yield f"## {table.title}"
    yield ""
    if table.source:
        yield f"Paper: {table.source}."
        yield ""
    costs = [f"{table.head} head", "training", "inference"] if table.head else []
    header = ["", *map(_title, table.metrics), *costs, "seeds"]
    yield _line(header)
    yield _line(["---"] * len(header))
    for entry in table.entries:
        found = results[entry.row]
        cells = [_cell(figure(found, m), paper) for m, paper in zip(table.metrics, entry.paper, strict=True)]
        if table.head:
            cells += _costs(found, table.head)
        yield _line([entry.label, *cells, ", ".join(map(str, found)) or "–"])
    label = {entry.row: entry.label for entry in table.entries}
    verdicts = [(comparison, compare(table, comparison, results)) for comparison in table.comparisons]
    verdicts = [pair for pair in verdicts if pair[1] is not None]
    if verdicts:
        yield ""
    for comparison, verdict in verdicts:
        rows = f"{label[comparison.ahead]} over {label[comparison.behind]}"
        yield f"- {rows}, {_title(comparison.metric)}: {verdict}"


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _title(metric):
    task, name = metric.split("/")
    return f"{_TASKS[task]} {name}"


def _cell(value, paper):
    return (str(value) if value else "–") + (f" [{paper:.1f}]" if paper is not None else "")


def _costs(found, head):
    if not found:
        return ["–"] * 3
    runs = list(found.values())
    parameters = runs[0]["parameters"].get(head, 0)
    return [
        f"{parameters / 1e3:.0f}k",
        f"{mean(run['train_ms'] for run in runs):.0f} ms/iteration",
        f"{mean(run['inference_ms'] for run in runs):.0f} ms/image",
    ]


def plot(study: Study, results: dict, file: Path, tables: list[str] = None) -> None:
    """Draws each table's rows as bars, the seeds' deviation on them and the paper's figures beside.

    The metric is the first comparison's, or the table's first.

    Args:
        study: whose rows they are.
        results: as of `collect`.
        file: picture to write, its format by its ending.
        tables: names of those to have; default all.
    """
    # The figure class, not pyplot: no display and no global state.
    from matplotlib.figure import Figure as Picture

    shown = [study.tables[name] for name in tables or study.tables]
    shown = [table for table in shown if any(results[entry.row] for entry in table.entries)]
    heights = [len(table.entries) + 1.6 for table in shown] or [1]
    picture = Picture(figsize=(9, 0.36 * sum(heights) + 0.4), layout="constrained")
    panels = picture.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(panels, shown, strict=False):
        metric = table.comparisons[0].metric if table.comparisons else table.metrics[0]
        column = table.metrics.index(metric)
        for place, entry in enumerate(table.entries):
            value = figure(results[entry.row], metric)
            if value:
                error = value.spread if len(value.values) > 1 else None
                axes.barh(place, value.mean, xerr=error, color="#4878a8", height=0.62, capsize=3)
                points = list(value.values.values())
                axes.plot(points, [place] * len(points), "o", color="black", markersize=2.5)
            if entry.paper[column] is not None:
                axes.plot(entry.paper[column], place, "D", color="#d1495b", markersize=6)
        axes.set_yticks(range(len(table.entries)), [entry.label for entry in table.entries], fontsize=8)
        axes.set_ylim(len(table.entries) - 0.5, -0.5)
        axes.set_title(f"{table.title}: {_title(metric)}", fontsize=9, loc="left")
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="x", labelsize=8)
    picture.supxlabel(
        "bars: mean on the scenes, lines: deviation over seeds, dots: seeds, diamonds: paper", fontsize=8
    )
    picture.savefig(file, dpi=120)


def write_report(study, output_dir: Path, seeds, tables=None) -> str:
    """Writes ``report.md`` and ``report.png`` from the results that are there; returns the Markdown."""
    results = collect(study, output_dir, seeds)
    text = markdown(study, results, tables)
    with replacing(output_dir / "report.md", "w") as file:
        file.write(text + "\n![The same as bars](report.png)\n")
    plot(study, results, output_dir / "report.png", tables)
    return text
