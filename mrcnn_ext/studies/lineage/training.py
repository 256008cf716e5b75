"""Trains, evaluates and times one step of the lineage."""

import json
import math
import shutil
import time
from collections import defaultdict
from pathlib import Path

import cv2
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import HookBase

from ...data import build_test_loader, load_dataset, register_scenes
from ...data.selective_search import make_proposals, selective_search
from ...engine.setup import load_config
from ...engine.trainer import Trainer
from ...files import replacing
from ...scenes import write_dataset
from .steps import Lineage, Step

__all__ = ["SCENES", "prepare", "search_seconds", "train_step"]

# Prefix of the datasets' names.
SCENES = "scenes_lineage"


def prepare(lineage: Lineage, output: Path, workers: int = 1, progress=None, proposals: bool = True) -> None:
    """Draws the scenes and makes their proposals where they are not there yet.

    Args:
        lineage: says which.
        output: folder of the study.
        workers: processes.
        progress: wraps an iterable: called as progress(iterable, total, description).
        proposals: whether a step needs them.
    """
    fields = dict(lineage.scenes)
    root = output / "scenes"
    write_dataset(
        root, fields.pop("preset"), **fields, workers=workers, formats=["coco"], force=True, progress=progress
    )
    _register(output)
    for split in ("train", "val") if proposals else ():
        name = f"{SCENES}_{split}"
        make_proposals(
            load_dataset(name),
            _proposals(output, split),
            **lineage.proposals,
            workers=workers,
            force=True,
            progress=progress
            and (lambda items, total, name=name: progress(items, total, f"proposals, {name}")),
        )


def search_seconds(lineage: Lineage, output: Path, images: int = 20) -> float:
    """Processor's seconds of selective search for an image, the mean over some validation images."""
    _register(output)
    pixels = [read_image(r["file_name"], "BGR") for r in load_dataset(f"{SCENES}_val")[:images]]
    cv2.setNumThreads(1)
    start = time.process_time()
    for image in pixels:
        selective_search(image, **lineage.proposals)
    return (time.process_time() - start) / len(pixels)


def train_step(step: Step, seed: int, output: Path, iterations: int | None = None) -> dict:
    """Trains a step and evaluates it, unless its result is there already. A training that was interrupted goes on at
    its last checkpoint.

    Args:
        step: of the study.
        seed: of the initial weights and of the order of the data.
        output: folder of the study, after `prepare`.
        iterations: instead of the study's.

    Returns:
        ``metrics`` in points, ``seconds`` per image and stage at inference in float32 (``proposals``, ``CNN``,
        ``heads``; external proposals have none), ``parameters``, ``proposals`` of an image, ``train_seconds`` and
        ``iterations``. All seconds are the processor's, not the clock's.
    """
    folder = output / step.name / f"seed{seed}"
    options = _options(step, seed, output, iterations)
    wanted = {k: v for k, v in options.items() if k != "OUTPUT_DIR" and "CHECKPOINT" not in k}
    wanted = json.loads(json.dumps(wanted, default=list))
    path = folder / "result.json"
    if path.is_file() and (result := json.loads(path.read_text()))["options"] == wanted:
        return result
    begun = folder / "options.json"
    if not begun.is_file() or json.loads(begun.read_text()) != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with replacing(begun, "w") as file:
            json.dump(wanted, file)
    _register(output)
    cv2.setNumThreads(1)
    cfg = load_config(step.file, [part for pair in options.items() for part in pair])
    cfg.freeze()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    timer = _StepTimer(folder / "seconds.json")
    trainer.register_hooks([timer])
    trainer.train()
    metrics = _metrics(trainer._last_eval_results)
    stages, proposals = _stages(cfg, trainer.model)
    result = {
        "step": step.name,
        "seed": seed,
        "options": wanted,
        "metrics": metrics,
        "seconds": stages,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "proposals": proposals,
        "train_seconds": timer.mean * cfg.SOLVER.MAX_ITER,
        "iterations": cfg.SOLVER.MAX_ITER,
    }
    with replacing(path, "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    return result


def _proposals(output, split):
    return output / f"proposals_{split}.pkl"


def _register(output):
    if f"{SCENES}_train" not in DatasetCatalog.list():
        register_scenes(str(output / "scenes"), SCENES)


def _options(step, seed, output, iterations):
    options = {
        **step.options,
        "DATASETS.TRAIN": (f"{SCENES}_train",),
        "DATASETS.TEST": (f"{SCENES}_val",),
        "OUTPUT_DIR": str(output / step.name / f"seed{seed}"),
        "SEED": seed,
    }
    if step.external:
        options["DATASETS.PROPOSAL_FILES_TRAIN"] = (str(_proposals(output, "train")),)
        options["DATASETS.PROPOSAL_FILES_TEST"] = (str(_proposals(output, "val")),)
    if iterations:
        options["SOLVER.MAX_ITER"] = iterations
    return options


class _StepTimer(HookBase):
    """The processor's seconds that an iteration takes, without evaluation: the mean since the training was begun or
    resumed, kept for who goes on at the evaluation."""

    def __init__(self, file: Path):
        self.file, self.total, self.count = file, 0.0, 0
        self._start = None

    def before_step(self):
        self._start = time.process_time()

    def after_step(self):
        if self._start is None:  # hooks run once before the first step of a resumed training
            return
        self.total += time.process_time() - self._start
        self.count += 1
        if self.count % 20 == 0 or self.trainer.iter + 1 >= self.trainer.max_iter:
            with replacing(self.file, "w") as file:
                json.dump(self.total / self.count, file)

    @property
    def mean(self) -> float:
        return json.loads(self.file.read_text())


def _metrics(results):
    return {
        f"{task}/{name}": round(float(value), 2)
        for task, values in results.items()
        for name, value in values.items()
        if "-" not in name and math.isfinite(value)
    }


@torch.no_grad()
def _stages(cfg, model, images: int = 20):
    """The processor's seconds per image in each stage of a float32 model, and proposals per image."""
    model = model.eval()
    parts = {"CNN": [model.backbone], "proposals": [model.proposal_generator], "ROI heads": [model.roi_heads]}
    if hasattr(model.roi_heads.box_head, "backbone"):
        parts["CNN"].append(model.roi_heads.box_head.backbone)
    seconds, counts, handles = defaultdict(float), [], []

    def timed(name, sign):
        def hook(*_):
            seconds[name] += sign * time.process_time()

        return hook

    for name, modules in parts.items():
        for module in filter(None, modules):
            handles += [
                module.register_forward_pre_hook(timed(name, -1)),
                module.register_forward_hook(timed(name, 1)),
            ]
    handles.append(
        model.roi_heads.register_forward_pre_hook(lambda _, args: counts.append(sum(map(len, args[2]))))
    )
    loader = build_test_loader(cfg, cfg.DATASETS.TEST[0])
    for number, batch in enumerate(loader):
        if number == 2:  # after a warm-up
            seconds.clear()
            counts.clear()
        if number == images + 2:
            break
        model(batch)
    for handle in handles:
        handle.remove()
    count = len(counts)
    # Of R-CNN's network the crops go through it within the ROI heads.
    within = seconds["CNN"] if len(parts["CNN"]) == 2 else 0.0
    stages = {
        "CNN": seconds["CNN"] / count,
        "heads": (seconds["ROI heads"] - within) / count,
    }
    if model.proposal_generator is not None:
        stages["proposals"] = seconds["proposals"] / count
    return stages, sum(counts) / count
