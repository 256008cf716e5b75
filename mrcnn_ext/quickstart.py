"""The quickstart in one program: draws scenes, trains a small model on them, evaluates it, shows what it sees."""

import argparse
import json
import os
from pathlib import Path

from .data.scenes import write_dataset
from .report import metrics_table, plot_metrics, prediction_sheet

__all__ = ["main"]

# What the scenes are called under $DETECTRON2_DATASETS: the preset's name says that they are the easy ones.
SCENES = "scenes_easy"


def main(argv=None) -> None:
    """Runs the quickstart; ``argv`` are the command line's arguments."""
    args = _parse(argv)
    data = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), SCENES)
    print(
        f"scenes: {args.num_train} to learn from and {args.num_val} others to be judged on, preset 'easy', in {data}"
    )
    write_dataset(data, "easy", args.num_train, args.num_val, args.seed, workers=os.cpu_count() or 1)

    from .engine.quickstart import train_and_evaluate
    from .model_zoo import get_config_file

    opts = {"SEED": args.seed}
    if args.iterations:
        opts["SOLVER.MAX_ITER"] = args.iterations
    config = get_config_file("quickstart.yaml")
    ours = train_and_evaluate(config, args.output, opts=opts)
    runs = {"mrcnn_ext": ours}
    if args.compare_stock:
        runs["stock detectron2"] = train_and_evaluate(config, args.output / "stock", opts=opts, stock=True)

    predictions = ours.pop("predictions")
    summary = {"host": "detectron2", "preset": "easy", **ours, "stock": None}
    if args.compare_stock:
        runs["stock detectron2"].pop("predictions")
        summary["stock"] = runs["stock detectron2"]
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_metrics(
        args.output / "metrics.json", args.output / "training.png", "mrcnn_ext quickstart, easy scenes"
    )
    annotations = data / "annotations" / "instances_val.json"
    prediction_sheet(annotations, predictions, data, args.output / "predictions.png")
    print(f"\non {args.num_val} unseen scenes of the preset 'easy':\n\n{metrics_table(runs)}\n")
    print(f"in {args.output}: model_final.pth, metrics.json, summary.json,")
    print("    training.png (losses and AP), predictions.png (ground truth, and right of it the predictions)")


def _parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/quickstart"), help="folder for the results"
    )
    parser.add_argument(
        "--compare-stock", action="store_true", help="train stock detectron2's parts the same way too"
    )
    parser.add_argument("--num-train", type=int, default=500, help="scenes to train on")
    parser.add_argument("--num-val", type=int, default=80, help="scenes to evaluate on")
    parser.add_argument("--iterations", type=int, help="instead of the config's SOLVER.MAX_ITER")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the training")
    return parser.parse_args(argv)
