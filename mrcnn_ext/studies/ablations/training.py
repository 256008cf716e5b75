"""Trains and evaluates one row of a study with one seed, in this process."""

import json
import math
import shutil
import time
from pathlib import Path

import cv2
import torch
from detectron2.engine import hooks

from ...data import register_scenes
from ...engine.launch import argument_parser
from ...engine.saving import CheckpointHook
from ...engine.setup import load_config, save_config, start
from ...engine.trainer import Trainer
from ...files import replacing
from .study import Row

__all__ = ["SCENES", "train_row", "train_start"]

# Prefix of the datasets' names in the configs.
SCENES = "scenes_ablations"


def train_start(row: Row, output_dir: Path, scenes_dir: Path) -> None:
    """Trains what rows start from: writes ``start.pth``, backbone and RPN alone, into ``output_dir``.

    Args:
        row: its config; its SEED is the config's.
        output_dir: for the checkpoint and the log.
        scenes_dir: what the scenes were written to.
    """
    trainer, _ = _train(row, 0, output_dir, scenes_dir, {"MODEL.WEIGHTS": ""})
    weights = {
        name: tensor
        for name, tensor in trainer.model.state_dict().items()
        if name.startswith(("backbone.", "proposal_generator."))
    }
    with replacing(output_dir / "start.pth") as file:
        torch.save({"model": weights}, file)


def train_row(row: Row, seed: int, output_dir: Path, scenes_dir: Path, weights: Path, digest: str) -> None:
    """Trains and evaluates a row: writes ``result.json`` into ``output_dir``.

    Args:
        row: its config.
        seed: of the heads' initial weights and of the order of the data.
        output_dir: for the result and the log.
        scenes_dir: what the scenes were written to.
        weights: checkpoint to start from.
        digest: of the row, kept in the result.
    """
    trainer, seconds = _train(row, seed, output_dir, scenes_dir, {"MODEL.WEIGHTS": str(weights)})
    cfg, model = trainer.cfg, trainer.model
    timer = _ForwardTimer(model)
    results = Trainer.test(cfg, model)
    metrics = {
        f"{task}/{name}": round(value, 3)
        for task, values in results.items()
        for name, value in values.items()
        if "-" not in name and math.isfinite(value)  # not of single classes, nor of absent sizes
    }
    result = {
        "row": row.name,
        "seed": seed,
        "digest": digest,
        "metrics": metrics,
        "parameters": _parameters(model),
        "train_ms": round(1e3 * seconds / cfg.SOLVER.MAX_ITER, 1),
        "inference_ms": round(1e3 * timer.seconds / timer.count, 1),
    }
    shutil.rmtree(output_dir / "inference", ignore_errors=True)
    with replacing(output_dir / "result.json", "w") as file:
        file.write(json.dumps(result, indent=2) + "\n")


def _train(row, seed, output_dir, scenes_dir, options):
    """The trainer after its last iteration, and the processor's seconds that the iterations took."""
    cv2.setNumThreads(1)
    shutil.rmtree(output_dir, ignore_errors=True)  # of a run that was interrupted, or of another config
    output_dir.mkdir(parents=True)
    register_scenes(str(scenes_dir), SCENES)
    options = {"SEED": seed, **row.options, **options, "OUTPUT_DIR": str(output_dir)}
    cfg = load_config(str(row.base), [part for pair in options.items() for part in pair])
    cfg.freeze()
    start(cfg, argument_parser().parse_args([]), str(output_dir))
    trainer = _Trainer(cfg)
    trainer.resume_or_load(resume=False)
    save_config(cfg, str(output_dir))
    began = time.process_time()
    trainer.train()
    return trainer, time.process_time() - began


class _Trainer(Trainer):
    """Leaves evaluation to who calls it, and no checkpoints behind."""

    def build_hooks(self):
        left_out = (hooks.EvalHook, hooks.PeriodicCheckpointer, CheckpointHook)
        return [hook for hook in super().build_hooks() if not isinstance(hook, left_out)]


class _ForwardTimer:
    """Seconds of the processor, not of the clock, that the forward passes of a model take.

    Other processes on the machine lengthen the time by the clock, and so does pausing this one.
    """

    def __init__(self, model):
        self.seconds, self.count = 0.0, 0
        model.register_forward_pre_hook(lambda *_: self._add(-1))
        model.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign):
        self.seconds += sign * time.process_time()
        self.count += sign > 0


def _parameters(model) -> dict:
    heads = {"all": model}
    for name in ("mask", "keypoint"):
        if getattr(model.roi_heads, f"{name}_on"):
            heads[name] = getattr(model.roi_heads, f"{name}_head")
    return {name: sum(p.numel() for p in module.parameters()) for name, module in heads.items()}
