"""Whether a recipe by the data (`mrcnn_ext.engine.recipe`) beats a config as it is, on three datasets of scenes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2

from ..config_files import get_config_file
from ..data import register_coco_format
from ..data.box_statistics import anchor_overlaps, box_statistics
from ..data.loading import load_dataset
from ..engine.recipe import resize_factors
from ..engine.recipe_config import apply_recipe
from ..engine.setup import load_config
from ..engine.trainer import Trainer
from ..scenes import get_preset, read_meta, write_dataset
from ..scenes.dataset import write_folder
from .kept import kept_result

__all__ = ["DATASETS", "WAYS", "run_study", "study_table"]

_CONFIG = "ablations/recipe.yaml"
WAYS = ("config", "recipe")


@dataclass(frozen=True)
class StudyDataset:
    """Scenes of one kind.

    Attributes:
        title: of the row.
        preset: fields of the preset "easy" that are other.
        squeeze: the images' height is divided by it, so that objects become elongated.
    """

    title: str
    preset: dict
    squeeze: float = 1.0


DATASETS = {
    "usual": StudyDataset(
        "usual sizes", {"height": 240, "width": 320, "size": (40, 0.8), "weights": {"person": 1.0}}
    ),
    "tiny": StudyDataset(
        "tiny objects in large images",
        {
            "height": 400,
            "width": 640,
            "size": (8, 0.06),
            "weights": {"person": 1.0},
            "actors": (10, 20),
            "min_area": 8,
        },
    ),
    "elongated": StudyDataset(
        "elongated objects", {"height": 400, "width": 512, "size": (50, 0.95), "weights": {"train": 1.0}}, 2.5
    ),
}


def run_study(
    output: Path,
    names: list[str],
    ways: list[str],
    *,
    iterations: int,
    num_train: int,
    num_val: int,
    seed: int,
) -> dict:
    """Trains and evaluates what has not been with these arguments, and gives all results so far.

    Args:
        output: folder for scenes, checkpoints and results.
        names: of `DATASETS`, to train on now.
        ways: of `WAYS`, to train now: the config as it is, and with the recipe.
        iterations: of each training; the recipe leaves them as they are.
        num_train, num_val: images.
        seed: of the training.

    Returns:
        By dataset and way: {"AP", "AP50", "fit", "seconds", "choices", "arguments"}; "fit" is the mean IoU of the
        objects with their best anchor, "seconds" an iteration's, "arguments" what it was made with.
    """
    results: dict[str, dict] = {}
    arguments = {"iterations": iterations, "num_train": num_train, "num_val": num_val}

    def train(name, way, folder):
        scenes = Path(output) / name / "scenes"
        _write_scenes(scenes, name, num_train, num_val)
        return _train(scenes, name, folder, way, iterations, seed)

    for name in DATASETS:
        for way in WAYS:
            path = Path(output) / name / way / f"result_{seed}.json"
            if name in names and way in ways:
                result = kept_result(path, arguments, partial(train, name, way, path.parent))
                results.setdefault(name, {})[way] = result
            elif path.is_file():
                results.setdefault(name, {})[way] = json.loads(path.read_text())
    return results


def study_table(results: dict) -> str:
    """Markdown, a row for each dataset and way."""
    rows = [
        "| data | how | anchors fit | box AP | AP50 | s/iteration |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, by_way in results.items():
        for way, result in by_way.items():
            cells = [
                DATASETS[name].title,
                way,
                *(f"{result[key]:.2f}" for key in ("fit",)),
                *(f"{result[key]:.1f}" for key in ("AP", "AP50")),
                f"{result['seconds']:.2f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _write_scenes(root: Path, name: str, num_train: int, num_val: int):
    dataset = DATASETS[name]
    whole = root.with_name("drawn") if dataset.squeeze != 1 else root
    preset = get_preset("easy", **dataset.preset)
    write_dataset(whole, preset, num_train, num_val, formats=["coco"], force=True)
    if whole != root:

        def write(building):
            for split in ("train", "val"):
                _squeeze(whole, building, split, dataset.squeeze)

        write_folder(root, {**read_meta(whole), "squeeze": dataset.squeeze}, True, write)


def _squeeze(source: Path, root: Path, split: str, by: float):
    content = json.loads((source / "annotations" / f"instances_{split}.json").read_text())
    for image in content["images"]:
        pixels = cv2.imread(str(source / image["file_name"]))
        image["height"] = round(image["height"] / by)
        path = root / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(path), cv2.resize(pixels, (image["width"], image["height"]), interpolation=cv2.INTER_AREA)
        )
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["bbox"], annotation["area"] = [x, y / by, w, h / by], annotation["area"] / by
        for key in ("segmentation", "keypoints", "num_keypoints"):  # of boxes alone
            annotation.pop(key, None)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _train(root: Path, name: str, folder: Path, way: str, iterations: int, seed: int) -> dict:
    for split in ("train", "val"):
        annotations = str(root / "annotations" / f"instances_{split}.json")
        register_coco_format(f"recipe_study_{name}_{split}", annotations, str(root))
    config_file = get_config_file(_CONFIG)
    options = {
        "DATASETS.TRAIN": (f"recipe_study_{name}_train",),
        "DATASETS.TEST": (f"recipe_study_{name}_val",),
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.CHECKPOINT_PERIOD": 0,
        "MODEL.ACCELERATE_TRAINING": True,
        "OUTPUT_DIR": str(folder),
        "SEED": seed,
    }
    opts = [part for pair in options.items() for part in pair]
    cfg = load_config(config_file, opts)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = apply_recipe(cfg, config_file, opts)
    if way == "config":
        cfg = load_config(config_file, opts)
    else:
        recipe.tell_and_write(str(folder))
        print(recipe)
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    start = time.perf_counter()
    trainer.train()
    metrics = trainer._last_eval_results["bbox"]
    return {
        **{key: float(metrics[key]) for key in ("AP", "AP50")},
        "fit": _fit(cfg),
        "seconds": trainer.storage.history("time").global_avg(),
        "with_evaluation": time.perf_counter() - start,
        "choices": recipe.lines() if way == "recipe" else [],
    }


def _fit(cfg) -> float:
    """Mean IoU of the objects of the test data with their best anchor, at test size."""
    data = box_statistics(load_dataset(cfg.DATASETS.TEST[0]), lambda annotation: annotation["bbox"])
    factors = resize_factors(data.sizes, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    generator = cfg.MODEL.ANCHOR_GENERATOR
    strides = [2 ** int(feature[1:]) for feature in cfg.MODEL.RPN.IN_FEATURES]
    overlaps = anchor_overlaps(data.scaled(factors), generator.SIZES, generator.ASPECT_RATIOS, strides)
    return float(overlaps.mean())
