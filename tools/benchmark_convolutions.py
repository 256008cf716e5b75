"""Lays our 3x3 and 1x1 convolutions and stem beside oneDNN's at the sizes of R-50-FPN; checks every result first.

Prints milliseconds, the ratio to float32, and the error against float64; writes convolutions.csv to --output.
Close other programs: these are times.
"""

import argparse
from pathlib import Path

import torch

from mrcnn_ext.benchmark import convolutions as benchmark
from mrcnn_ext.benchmark.tables import write_csv


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=list(benchmark.LAYERS), choices=list(benchmark.LAYERS))
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}), help="default: 1, all"
    )
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for each row, about")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_convolutions"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    rows = []
    print(benchmark.header())
    for name in args.layers:
        for threads in args.threads:
            rows.append(benchmark.measure(name, benchmark.LAYERS[name], args.budget, threads))
            print(benchmark.line(rows[-1]), flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    write_csv(rows, args.output / "convolutions.csv")


if __name__ == "__main__":
    main()
