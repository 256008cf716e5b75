"""``mrcnn-ext compare``."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import click

from ..files import replacing
from .run_folders import dataset_of, results_of


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--truth",
    metavar="FILE|NAME",
    help="The annotations: a file of COCO's format, or a registered dataset. Default: what the first run's "
    "config.yaml names.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    help="Draws of images for the intervals.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--csv", "csv_file", metavar="FILE", help="Write the numbers to this file, too.")
def command(runs, truth, samples, seed, csv_file):
    """Lay the APs of several runs side by side, with bootstrap intervals.

    Each RUN is the output folder of a training or evaluation, or a file of COCO results. The intervals hold 95 % of
    the APs of draws of the images with replacement; each run's difference from the first is taken on the same draws.

    \b
    Examples:
      mrcnn-ext compare output/stock output/boundary output/scoring
      mrcnn-ext compare a.json b.json --truth val.json --csv compared.csv
    """
    from ..evaluation.comparison import compare
    from ..evaluation.result_files import read_results

    annotations, name = _truth(truth, Path(runs[0]))
    files = [results_of(Path(run), name) for run in runs]
    if csv_file and Path(csv_file).resolve() in {file.resolve() for file in files}:
        raise ValueError(f"--csv {csv_file} is one of the runs: give another file")
    if not (truth and Path(truth).is_file()):
        _note_other_data(runs, files, name)
    rows = []
    records = [read_results(file, annotations) for file in files]
    tasks = _tasks(annotations, records)
    evaluated = [
        _matches(annotations, own, tasks, str(file)) for own, file in zip(records, files, strict=True)
    ]
    for task in tasks:
        having = [k for k, run in enumerate(evaluated) if task in run]
        compared = compare([evaluated[k][task] for k in having], samples, seed)
        for k, metrics in zip(having, compared, strict=True):
            rows += [
                {"task": task, "run": runs[k], "metric": metric, **values}
                for metric, values in metrics.items()
            ]
    click.echo(_markdown(rows))
    if csv_file:
        _write(rows, csv_file)
        click.echo(f"\nwrote {csv_file}")


def _truth(truth: str | None, run: Path):
    """The ground truth, mended, and the name of its dataset."""
    from ..data.coco_file import CocoFile
    from ..data.problems import Problems
    from ..evaluation.coco_metrics import TruthCOCO

    if truth is not None and Path(truth).is_file():
        problems = Problems(truth, truth)
        content = CocoFile(truth, problems).content()
        problems.raise_errors()
        return TruthCOCO(content), Path(truth).stem
    from ..data.loading import coco_content

    if truth:
        _check_registered(truth)
    name = truth or dataset_of(run, "--truth")
    return TruthCOCO(coco_content(name)), name


def _note_other_data(runs, files, name):
    """Says of which runs the results are of another dataset than the annotations."""
    for run, file in zip(runs, files, strict=True):
        own = file.parent.name if file.parent.parent.name == "inference" else name
        if own != name:
            click.echo(f"note: {run} was evaluated on {own}, and is laid beside {name}", err=True)


def _check_registered(name):
    from detectron2.data import DatasetCatalog

    from ..engine.errors import did_you_mean

    if name not in DatasetCatalog.list():
        hint = did_you_mean(name, DatasetCatalog.list())
        raise ValueError(f"--truth {name}: neither a file nor a registered dataset{hint}")


_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def _tasks(truth, runs):
    """What a run has predictions of, or, where no run found anything, what there is to find: boxes at least."""
    found = [task for task, key in _KEYS.items() if any(key in record for run in runs for record in run)]
    has_keypoints = any(a.get("num_keypoints") for a in truth.anns.values())
    return [task for task in found or ["bbox"] if task != "keypoints" or has_keypoints]


def _matches(truth, records, tasks, where):
    """Matches of each class, by task; a run without predictions found nothing. pycocotools' tables are not printed."""
    from ..evaluation.coco_metrics import evaluate_task, oks_sigmas
    from ..evaluation.comparison import Matches

    found = {}
    for task in tasks:
        if records and _KEYS[task] not in records[0]:
            continue
        names = next((c["keypoints"] for c in truth.dataset["categories"] if c.get("keypoints")), ())
        counts = {len(a["keypoints"]) // 3 for a in truth.anns.values() if a.get("keypoints")}
        sigmas = oks_sigmas((), names, counts, where) if task == "keypoints" else ()
        with contextlib.redirect_stdout(io.StringIO()):
            found[task] = Matches.of(evaluate_task(truth, records, task, sigmas=sigmas))
    return found


def _markdown(rows) -> str:
    """A line for each run and task."""
    lines = [
        "| task | run | AP | AP50 | AP75 | AP less the first's |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for task, run in dict.fromkeys((row["task"], row["run"]) for row in rows):
        own = {row["metric"]: row for row in rows if (row["task"], row["run"]) == (task, run)}
        values = " | ".join(str(own[metric]["value"]) for metric in ("AP", "AP50", "AP75"))
        difference = own["AP"].get("difference")
        shown = (
            ""
            if difference is None
            else f"{difference.value:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
        )
        lines.append(f"| {task} | {run} | {values} | {shown} |")
    return "\n".join(lines)


def _write(rows, path):
    names = (
        "task",
        "run",
        "metric",
        "value",
        "low",
        "high",
        "difference",
        "difference low",
        "difference high",
    )
    with replacing(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = [row["task"], row["run"], row["metric"]]
            for key in ("value", "difference"):
                interval = row.get(key)
                cells += ["", "", ""] if interval is None else [interval.value, interval.low, interval.high]
            writer.writerow(cells)
