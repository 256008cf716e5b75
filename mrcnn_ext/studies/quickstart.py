"""The quickstart in one program: draws scenes, trains a small model on them, evaluates it, shows what it sees."""

import argparse
import json
import logging
import os
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from ..config_files import get_config_file
from ..scenes import read_meta, write_dataset
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
    runs = {f"mrcnn_ext in {framework}": _FRAMEWORKS[framework](args, data, args.output)}
    if args.compare_stock:
        runs["stock detectron2"] = _in_detectron2(args, data, args.output / "stock", stock=True)
    ours, *stock = runs.values()
    summary = {"framework": framework, "preset": "easy", **ours, "stock": stock[0] if stock else None}
    (args.output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_metrics(
        args.output / "metrics.json", args.output / "training.png", f"quickstart in {framework}, easy scenes"
    )
    annotations = data / "annotations" / "instances_val.json"
    prediction_sheet(annotations, ours["predictions"], data, args.output / "predictions.png")
    print(f"\non {args.num_val} unseen scenes of the preset 'easy':\n\n{metrics_table(runs)}\n")
    print(f"in {args.output}: model_final.pth, metrics.json, summary.json,")
    print("    training.png (losses and AP), predictions.png (ground truth, and right of it the predictions)")
    print(
        f"\nthe report of the last evaluation, for a browser:\n\n    {Path(ours['report']).resolve().as_uri()}\n"
    )
    if framework == "detectron2":
        print(
            f"the model, its heads and RoI layers, in a browser:\n\n    mrcnn-ext app {args.output}/model_final.pth\n"
        )


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


def _in_detectron2(args, data, output, stock: bool = False) -> dict:
    from .quickstart_detectron2 import train_and_evaluate

    opts = {"SEED": args.seed}
    if args.iterations:
        opts["SOLVER.MAX_ITER"] = args.iterations
    return train_and_evaluate(get_config_file("quickstart.yaml"), output, opts=opts, stock=stock)


def _in_torchvision(args, data, output) -> dict:
    from .quickstart_torchvision import train_and_evaluate

    # torchvision has no logger of its own, as detectron2 has, to show the progress.
    logging.basicConfig(format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("mrcnn_ext").setLevel(logging.INFO)
    config = get_config_file("quickstart.yaml")
    return train_and_evaluate(config, data, output, budget_iterations=args.iterations, seed=args.seed)


_FRAMEWORKS = {"detectron2": _in_detectron2, "torchvision": _in_torchvision}


def _parse(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/quickstart"), help="folder for the results"
    )
    parser.add_argument(
        "--compare-stock", action="store_true", help="train stock detectron2's components the same way too"
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
