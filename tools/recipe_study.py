#!/usr/bin/env python
"""Train a small network with a config as it is and with --recipe auto, on three datasets of scenes; ten minutes on a
core. What is in the output folder already is not trained again."""

import argparse
import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.studies.recipe import DATASETS, WAYS, run_study, study_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/recipe"), help="folder for the results")
    parser.add_argument(
        "--data", nargs="+", choices=list(DATASETS), default=list(DATASETS), help="to train on now"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to train now")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--num-train", type=int, default=100, help="images")
    parser.add_argument("--num-val", type=int, default=40, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    args = parser.parse_args()
    results = run_study(
        args.output,
        args.data,
        args.ways,
        iterations=args.iterations,
        num_train=args.num_train,
        num_val=args.num_val,
        seed=args.seed,
    )
    print(study_table(results))
