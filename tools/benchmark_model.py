"""Lays a detector accelerated beside itself as detectron2 runs it, same weights, in one run; checks the outputs.

By default the zoo's Mask R-CNN and Keypoint R-CNN R-50-FPN with random weights, and a score threshold at which
every image has the detections asked for. Random scores are all but tied, so that in bf16 other detections come
first: look at the agreement in float32 and on stock's boxes, or take a trained model. Prints a table and where
the time goes; writes model.csv and model.png, and evaluation.csv with --images, to --output. Close other
programs: these are times.

    python tools/benchmark_model.py --quick
    python tools/benchmark_model.py --config output/quickstart/config.yaml \\
        --weights output/quickstart/model_final.pth --dataset scenes_easy_val --min-score 0.05 --sizes 160x240 \\
        --images 50
"""

import argparse
from pathlib import Path

import torch

from mrcnn_ext.benchmark import model as benchmark
from mrcnn_ext.benchmark import throughput
from mrcnn_ext.benchmark.tables import write_csv

BF16 = {"auto": "auto", "on": True, "off": False}


def size(text):
    height, width = text.split("x")
    return int(height), int(width)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=benchmark.ZOO, help="yaml files or names in the zoos")
    parser.add_argument("--weights", default="", help="a checkpoint that fits every --config")
    parser.add_argument("--dataset", default="", help="a registered dataset whose images to take")
    parser.add_argument("--min-score", type=float, default=0.0, help="of detections; 0: the weights decide")
    parser.add_argument("--tasks", nargs="+", default=benchmark.TASKS, choices=benchmark.TASKS)
    parser.add_argument("--sizes", type=size, nargs="+", default=[(800, 1216), (480, 640)], metavar="HxW")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="images at a time")
    parser.add_argument("--instances", type=int, nargs="+", default=[100, 10, 500], help="at most, an image")
    parser.add_argument(
        "--images", type=int, default=0, help="also evaluate so many images of --dataset, from files to AP"
    )
    parser.add_argument("--bf16", default="auto", choices=list(BF16), help="of the accelerated model")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for each row, about")
    parser.add_argument(
        "--quick", action="store_true", help="one row for each config and task: about two minutes"
    )
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_model"))
    parser.add_argument("opts", nargs="*", default=[], help="config options, KEY VALUE ..., after --")
    return parser.parse_args()


def main():
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rows, evaluations = [], []
    for config in args.config:
        subject = benchmark.Subject(
            config, args.weights, args.device, args.opts, args.dataset, args.min_score, BF16[args.bf16]
        )
        print(f"\n{subject.name}\n{subject.accelerated().acceleration}\n{benchmark.header()}")
        cases = benchmark.sweep(args.tasks, args.sizes, args.batches, args.instances, args.quick)
        for case in cases:
            rows.append(benchmark.measure(subject, case, args.budget, args.threads))
            print(benchmark.line(rows[-1]), flush=True)
            write_csv(rows, args.output / "model.csv")  # now: a later row may fail
        if args.images:
            evaluations.append(throughput.measure_dataset(subject, args.images, args.threads))
            print(f"\n{throughput.header()}\n{throughput.line(evaluations[-1])}", flush=True)
            write_csv(evaluations, args.output / "evaluation.csv")
    inference = [row for row in rows if row["task"] != "training"]
    print("\nmilliseconds by stage", *map(benchmark.stages, inference), sep="\n")
    benchmark.plot(rows, args.output / "model.png")
    print(f"\nwrote {', '.join(sorted(path.name for path in args.output.iterdir()))} to {args.output}")


if __name__ == "__main__":
    main()
