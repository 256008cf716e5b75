"""Lays masks_to_rle beside detectron2's paste and pycocotools' encode; checks equality first.

Prints times, peak memory and the target, met or missed; writes masks.csv to --output. Close other programs.
"""

import argparse
import sys
from pathlib import Path

import torch

from mrcnn_ext.benchmark import masks as benchmark
from mrcnn_ext.benchmark.tables import write_csv


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--instances", type=int, nargs="+", default=[100])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}), help="default: 1, all"
    )
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each row, about")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_masks"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    print(benchmark.header())
    for image in benchmark.IMAGES:
        for count in args.instances:
            for threads in args.threads:
                rows.append(benchmark.measure(count, image, args.budget, threads))
                print(benchmark.line(rows[-1]), flush=True)
    targets = [benchmark.target(row) for row in rows]
    print("", *targets, sep="\n")
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, args.output / "masks.csv")
    sys.exit(0 if all(target.met for target in targets) else 1)


if __name__ == "__main__":
    main()
