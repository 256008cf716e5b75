"""Lays RoI pooling beside torchvision, detectron2's ROIPooler and the memory floor; checks equality first.

Prints a table; writes roi_align.csv and roi_align.png to --output. Close other programs: these are times.
"""

import argparse
import sys
from pathlib import Path

import torch

from mrcnn_ext.benchmark import roi_align as benchmark
from mrcnn_ext.benchmark.tables import write_csv


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few cases with fewer RoIs: about half a minute"
    )
    parser.add_argument(
        "--targets", action="store_true", help="only the rows of the target table, met or missed"
    )
    parser.add_argument(
        "--end-to-end", action="store_true", help="Mask R-CNN R-50-FPN with our pooler and with the stock one"
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="the larger thread count"
    )
    parser.add_argument(
        "--budget", type=float, help="seconds for each case, about (default: 2; --quick: 0.5)"
    )
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_roi_align"))
    return parser.parse_args()


def main():
    args = parse_arguments()
    budget = args.budget or (0.5 if args.quick else 2.0)
    if args.targets:
        rows = benchmark.targets(args.device, budget)
        print(*rows, sep="\n")
        sys.exit(0 if all(row.met for row in rows) else 1)
    if args.end_to_end:
        from mrcnn_ext.benchmark import end_to_end

        print(end_to_end.report(args.device, args.threads, budget))
        return
    rows = []
    args.output.mkdir(parents=True, exist_ok=True)
    print(benchmark.header())
    for case in benchmark.sweep(args.device, args.quick, args.threads):
        rows.append(benchmark.measure(case, budget))
        print(benchmark.line(rows[-1]), flush=True)
        # Row by row: the whole table takes a quarter of an hour.
        write_csv(rows, args.output / "roi_align.csv")
    benchmark.plot(rows, args.output / "roi_align.png")
    print(f"wrote roi_align.csv and roi_align.png to {args.output}")


if __name__ == "__main__":
    main()
