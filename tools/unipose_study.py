#!/usr/bin/env python
"""Train UniPose on crops of people and the RoI keypoint head on whole scenes, and lay their keypoints side by side on
the same people, whose boxes are given. What is in the output folder already is not trained again."""

import argparse
import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.studies.unipose import HEADS, run_study, study_table

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/unipose"), help="folder for the results")
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="to train now")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--num-train", type=int, default=400, help="scenes")
    parser.add_argument("--num-val", type=int, default=80, help="scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    args = parser.parse_args()
    results = run_study(
        args.output,
        args.heads,
        iterations=args.iterations,
        num_train=args.num_train,
        num_val=args.num_val,
        seed=args.seed,
    )
    print(study_table(results))
