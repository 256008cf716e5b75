#!/usr/bin/env python
"""Train keypoint heads with a state over the frames of clips and heads of single frames, on the features of one
detector. What is in the output folder already is not done again."""

import argparse
import logging
import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.files import replacing
from mrcnn_ext.studies.temporal import HEADS, StudySize, history_table, plot_history, run_study, study_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/temporal"), help="folder for the results")
    parser.add_argument("--heads", nargs="*", choices=list(HEADS), default=list(HEADS), help="to train now")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for name, help in (
        ("num_detector", "frames that the detector alone learns from, each of a clip of its own"),
        ("num_train", "clips that the heads learn from"),
        ("num_val", "clips that the heads are measured on"),
        ("iterations", "of the detector"),
        ("batch", "frames of an iteration of the detector"),
        ("updates", "of each head"),
        ("people", "of an update, with all their frames"),
    ):
        default = getattr(StudySize, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=help)
    parser.add_argument(
        "--weights",
        default="",
        help="checkpoint of the quickstart to begin with; with --iterations 0 as it is",
    )
    parser.add_argument("--device", default="cpu", help="of the detector and the heads: cpu, cuda, cuda:1")
    parser.add_argument(
        "--processes", type=int, default=1, help="that draw clips; heads that are trained at once"
    )
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    size = StudySize(
        args.num_detector,
        args.num_train,
        args.num_val,
        args.iterations,
        args.batch,
        args.updates,
        args.people,
        weights=args.weights,
    )
    results = run_study(args.output, size, args.heads, args.seeds, args.device, args.processes)
    tables = [
        study_table(results),
        *(history_table(results, key) for key in ("AP", "AP occluded", "PCK@0.05")),
    ]
    with replacing(args.output / "tables.md", "w") as file:
        file.write("\n\n".join(tables) + "\n")
    plot_history(results, args.output / "frames.png")
    print("\n\n".join(tables))
