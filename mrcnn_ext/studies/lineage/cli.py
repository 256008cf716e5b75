"""Trains R-CNN, Fast R-CNN, Faster R-CNN and Mask R-CNN, step by step, on the same scenes, and
shows what each step buys. What is in the output folder already is not trained again, an interrupted training goes on,
and several processes may share the work."""

import argparse
import contextlib
import json
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from ...files import replacing
from .steps import load_lineage

__all__ = ["main"]


def main(argv=None) -> int:
    """Runs the study; ``argv`` are the command line's arguments."""
    lineage = load_lineage()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/lineage"), help="folder for the results")
    parser.add_argument(
        "--steps", nargs="+", choices=list(lineage.steps), default=list(lineage.steps), help="to train now"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="of training")
    parser.add_argument("--iterations", type=int, metavar="N", help="instead of the study's: for a trial")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that draw and search")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is there")
    args = parser.parse_args(argv)
    if find_spec("detectron2") is None:
        parser.error(
            "detectron2 is not installed; get it with make setup DETECTRON2=<pip requirement, URL or path>"
        )
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.report_only:
        _train(lineage, args)
    rows = _rows(lineage, args.output)
    if not rows:
        parser.error(f"there are no results in {args.output}: call it without --report-only")
    _report(lineage, rows, args.output, min(args.seeds))
    return 0


def _train(lineage, args):
    from .training import prepare, search_seconds, train_step

    steps = [lineage.steps[name] for name in args.steps]
    external = any(step.external for step in steps)
    with _alone(args.output / "prepare.lock", wait=True):
        prepare(
            lineage,
            args.output,
            args.workers,
            lambda items, total, name: tqdm(items, desc=name, total=total, unit="image"),
            external,
        )
        search = args.output / "search.json"
        if external and not search.is_file():
            seconds = search_seconds(lineage, args.output)
            with replacing(search, "w") as file:
                json.dump(seconds, file)
    for seed in args.seeds:
        for step in steps:
            with _alone(args.output / f"{step.name}-{seed}.lock") as is_alone:
                if is_alone:
                    result = train_step(step, seed, args.output, args.iterations)
                    print(f"{step.title}, seed {seed}: {result['metrics']}")
                else:
                    print(f"{step.title}, seed {seed}: another process is at it")


@contextlib.contextmanager
def _alone(file, wait=False):
    """Whether no other process holds the file, for which it may wait; until the context ends none gets it."""
    import fcntl

    with open(file, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def _rows(lineage, output):
    from .report import averages

    search = output / "search.json"
    rows = {}
    for name, step in lineage.steps.items():
        results = [json.loads(path.read_text()) for path in sorted((output / name).glob("seed*/result.json"))]
        if results:
            known = json.loads(search.read_text()) if step.external and search.is_file() else None
            rows[name] = averages(results, known)
    return rows


def _report(lineage, rows, output, seed):
    import cv2

    from .report import checks, lineage_figure, lineage_table, step_sheet

    text = lineage_table(lineage, rows) + "\n\n" + "\n".join(f"- {line}" for line in checks(rows)) + "\n"
    with replacing(output / "lineage.md", "w") as file:
        file.write(text)
    lineage_figure(lineage, rows).savefig(output / "lineage.png", dpi=130)
    print(text)
    for scene in (0, 1, 2):
        cv2.imwrite(str(output / f"scene{scene}.png"), step_sheet(lineage, output, seed, scene)[:, :, ::-1])
    print(f"in {output}: lineage.md, lineage.png, scene*.png, a folder for each step")
