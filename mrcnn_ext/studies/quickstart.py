"""The quickstart in one program: draws scenes, trains a small model on them, evaluates it, shows what it sees."""

import argparse
import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from ..config_files import get_config_file
from ..files import replacing
from ..scenes import read_meta, write_dataset
from .report import best_thresholds, metrics_table, plot_metrics, prediction_sheet

__all__ = ["main"]

# What the scenes are called under $DETECTRON2_DATASETS: the preset's name says that they are the easy ones.
SCENES = "scenes_easy"
# The trainings, as summary.json names them.
_OURS, _STOCK = "ours", "stock"


def main(argv=None) -> None:
    """Runs the quickstart; ``argv`` are the command line's arguments."""
    args = _parse(argv)
    data = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), SCENES)
    print(
        f"scenes: {args.num_train} to learn from and {args.num_val} others to be judged on, preset 'easy', in {data}"
    )
    workers = os.cpu_count() or 1
    there = read_meta(data)
    if there is not None and [there.get(k) for k in ("num_train", "num_val", "seed")] != [
        args.num_train,
        args.num_val,
        args.seed,
    ]:
        print(f"(in place of {there['num_train']} and {there['num_val']} scenes of seed {there['seed']})")
    write_dataset(
        data, "easy", args.num_train, args.num_val, args.seed, workers, progress=_progress, force=True
    )

    framework = args.framework or _available_framework()
    runs = _runs(framework, args, data)
    shown = runs[_OURS]
    names = {_OURS: f"mrcnn_ext in {framework}", _STOCK: "stock detectron2, as long"}
    summary = {"framework": framework, "preset": "easy", **shown, "runs": runs}
    with replacing(args.output / "summary.json", "w") as file:
        file.write(json.dumps(summary, indent=2) + "\n")
    plot_metrics(
        Path(shown["folder"], "metrics.json"),
        args.output / "training.png",
        f"quickstart in {framework}, easy scenes",
    )
    annotations = data / "annotations" / "instances_val.json"
    thresholds = best_thresholds(annotations, shown["predictions"])
    prediction_sheet(annotations, shown["predictions"], data, args.output / "predictions.png", thresholds)
    table = metrics_table({names[run]: summary for run, summary in runs.items()})
    print(f"\non {args.num_val} unseen scenes of the preset 'easy':\n\n{table}\n")
    print(f"in {shown['folder']}: model_final.pth, metrics.json; in {args.output}: summary.json,")
    print("    training.png (losses and AP), predictions.png (ground truth, and right of it the predictions")
    print("    whose scores are above the threshold of the best F1 of their class on these scenes:")
    print(f"    {', '.join(f'{name} {score:.2f}' for name, score in thresholds.items())})")
    print(
        f"\nthe report of the last evaluation, for a browser:\n\n    {Path(shown['report']).resolve().as_uri()}\n"
    )
    if framework == "detectron2":
        print(
            "the model, its heads and RoI layers, in a browser:\n\n"
            f"    mrcnn-ext app {shown['folder']}/model_final.pth\n"
        )


def _runs(framework, args, data) -> dict[str, dict]:
    """Trains what the command line asks for; the summaries, in the order of the table."""
    train = _FRAMEWORKS[framework]
    runs = {_OURS: train(data, args.output, args.iterations, args.seed)}
    if args.compare_stock:
        seconds = runs[_OURS]["train_seconds"]
        iterations = iterations_in_time(_pace_of_stock(args.seed), seconds)
        print(f"\nours trained for {seconds:.0f} s: stock as long, {iterations} iterations")
        runs[_STOCK] = _in_detectron2(data, args.output / "stock", iterations, args.seed, stock=True)
    return runs


def iterations_in_time(run: dict, seconds: float) -> int:
    """How many iterations a training does in a time, at the pace of another.

    Args:
        run: the other training's "iterations" and "train_seconds".
        seconds: to train for.

    Returns:
        int: rounded down, to tens where there are that many.
    """
    iterations = max(1, int(run["iterations"] * seconds / run["train_seconds"]))
    return iterations - iterations % 10 if iterations > 10 else iterations


def _progress(items, total, split):
    return tqdm(items, desc=split, total=total, unit="scene")


def _available_framework() -> str:
    if find_spec("detectron2") is not None:
        return "detectron2"
    print(
        "\n*** detectron2 is not installed: the same backbone, pooler and heads run inside torchvision's Mask R-CNN "
        "instead, with torchvision's RPN, losses and training. For the detectron2 framework: "
        "make setup DETECTRON2=<pip requirement, URL or path> ***\n"
    )
    return "torchvision"


def _in_detectron2(data, output, iterations, seed, stock: bool = False) -> dict:
    from .quickstart_detectron2 import train_and_evaluate

    config = get_config_file("quickstart.yaml")
    return train_and_evaluate(config, output, budget_iterations=iterations, seed=seed, stock=stock)


def _pace_of_stock(seed) -> dict:
    from .quickstart_detectron2 import measure_pace

    return measure_pace(get_config_file("quickstart.yaml"), seed=seed, stock=True)


def _in_torchvision(data, output, iterations, seed) -> dict:
    from .quickstart_torchvision import train_and_evaluate

    # torchvision has no logger of its own, as detectron2 has, to show the progress.
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mrcnn_ext").setLevel(logging.INFO)
    config = get_config_file("quickstart.yaml")
    return train_and_evaluate(config, data, output, budget_iterations=iterations, seed=seed)


_FRAMEWORKS = {"detectron2": _in_detectron2, "torchvision": _in_torchvision}


def _parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/quickstart"), help="folder for the results"
    )
    parser.add_argument(
        "--compare-stock",
        action="store_true",
        help="train stock detectron2's components for as long, too",
    )
    parser.add_argument("--num-train", type=int, default=500, help="scenes to train on")
    parser.add_argument("--num-val", type=int, default=80, help="scenes to evaluate on")
    parser.add_argument("--iterations", type=int, help="instead of the config's SOLVER.MAX_ITER")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes and of the training")
    parser.add_argument(
        "--framework",
        choices=list(_FRAMEWORKS),
        help="whose detector holds our components; detectron2 if installed",
    )
    args = parser.parse_args(argv)
    if args.compare_stock and find_spec("detectron2") is None:
        parser.error("--compare-stock needs detectron2, which is not installed")
    return args
