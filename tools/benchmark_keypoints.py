"""Lays heatmaps_to_keypoints beside detectron2's for boxes of several sizes; checks the results first.

Prints times, peak memory and the targets, met or missed; writes keypoints.csv to --output. Close other programs.
"""

import argparse
import sys
from pathlib import Path

import torch

from mrcnn_ext.benchmark import keypoints as benchmark
from mrcnn_ext.benchmark.tables import write_csv


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--instances", type=int, default=100)
    parser.add_argument("--keypoints", type=int, default=17)
    parser.add_argument(
        "--heights", type=int, nargs="+", default=benchmark.HEIGHTS, help="of boxes, in pixels"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each row, about")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_keypoints"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    print(benchmark.header())
    for height in args.heights:
        options = (args.device, args.budget, args.threads)
        rows.append(benchmark.measure(args.instances, args.keypoints, height, *options))
        print(benchmark.line(rows[-1]), flush=True)
    targets = benchmark.targets(rows)
    print("", *targets, sep="\n")
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, args.output / "keypoints.csv")
    sys.exit(0 if all(target.met for target in targets) else 1)


if __name__ == "__main__":
    main()
