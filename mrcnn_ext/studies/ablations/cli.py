"""Trains the paper's ablations in small on synthetic scenes and lays them beside the paper's figures."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from .report import write_report
from .runner import run_study
from .study import load_study

__all__ = ["main"]

_EPILOG = """\
What is finished is not trained again, and an interrupted run goes on where it stopped: call it again.
Tables and rows are those of configs/ablations/rows.yaml; --list shows them.
"""


def main(argv=None) -> int:
    """Runs the ablations; ``argv`` are the command line's arguments. Returns 1 if a run failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/ablations"), help="folder (default: output/ablations)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of training (default: 0 1 2)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tables or rows (default: all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (default: 2)")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help="instead of SOLVER.MAX_ITER of every config: for a trial"
    )
    parser.add_argument("--report-only", action="store_true", help="train nothing, report what is there")
    parser.add_argument("--list", action="store_true", help="show the tables and their rows, and do nothing")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")

    study = load_study()
    if args.iterations:
        study = study.with_options({"SOLVER.MAX_ITER": args.iterations})
    if args.list:
        for table in study.tables.values():
            print(f"{table.name}: {table.title}")
            for entry in table.entries:
                print(f"    {entry.row}: {entry.label}")
        return 0
    try:
        rows = study.select(args.only)
    except ValueError as error:
        parser.error(f"--only: {error}")

    if find_spec("detectron2") is None:
        parser.error(
            "detectron2 is not installed; get it with make setup DETECTRON2=<pip requirement, URL or path>"
        )
    failed = []
    if not args.report_only:
        args.output.mkdir(parents=True, exist_ok=True)
        failed = run_study(study, rows, args.seeds, args.output.resolve(), args.jobs)
    print(write_report(study, args.output, args.seeds))
    print(f"in {args.output}: report.md, report.png, a folder per run in runs/")
    for run in failed:
        print(f"FAILED {run}")
    return 1 if failed else 0
