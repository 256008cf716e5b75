"""The quickstart's training and evaluation, by detectron2."""

import logging
import tempfile
from pathlib import Path

from ..engine.checks import check_config
from ..engine.launch import argument_parser
from ..engine.setup import load_config, save_config, start
from ..engine.trainer import Trainer
from .stock_components import STOCK_COMPONENTS

__all__ = ["measure_pace", "train_and_evaluate"]

_PACE_ITERATIONS = 40


def train_and_evaluate(
    config_file: str,
    output_dir,
    *,
    budget_iterations: int | None = None,
    seed: int | None = None,
    stock: bool = False,
    opts: dict | None = None,
) -> dict:
    """Trains the model of a yaml config from its start and evaluates it on DATASETS.TEST.

    Args:
        config_file: the config; its DATASETS.TEST is a dataset in COCO's format, then one in Cityscapes'.
        output_dir: for checkpoints, metrics and predictions.
        budget_iterations: instead of the config's SOLVER.MAX_ITER. Evaluations and checkpoints are as many as the
            config's.
        seed: instead of the config's SEED.
        stock: use detectron2's own components instead of ours.
        opts: config keys that go over all of these.

    Returns:
        dict: "coco": {"bbox", "segm", "keypoints": {"AP", "AP50"}}, "cityscapes": {"AP", "AP50"}, AP in points;
        "iterations"; "train_seconds", evaluations left out; "folder", of the checkpoints; "predictions", the COCO
        results file; "report", the page of the last evaluation.
    """
    trainer = _train(config_file, output_dir, budget_iterations, seed, stock, opts or {})
    cfg = trainer.cfg
    results = trainer._last_eval_results
    coco, cityscapes = cfg.DATASETS.TEST
    return {
        "coco": {task: _points(results[coco][task]) for task in ("bbox", "segm", "keypoints")},
        "cityscapes": _points(results[cityscapes]["segm"]),
        "iterations": cfg.SOLVER.MAX_ITER,
        "train_seconds": round(_seconds(trainer), 1),
        "folder": str(output_dir),
        "report": str(Path(output_dir, f"report_{coco}.html")),
        "predictions": str(Path(output_dir, "inference", coco, "coco_instances_results.json")),
    }


def measure_pace(config_file: str, *, seed: int | None = None, stock: bool = False) -> dict:
    """Trains the model of a config for a few iterations, of which nothing stays.

    Args:
        config_file, seed, stock: as of `train_and_evaluate`.

    Returns:
        dict: "iterations" and "train_seconds", as of `train_and_evaluate`.
    """
    opts = {"DATASETS.TEST": (), "TEST.EVAL_PERIOD": 0, "TEST.REPORT": False, "VAL_LOSS.ENABLED": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = _train(config_file, folder, _PACE_ITERATIONS, seed, stock, opts)
    return {"iterations": _PACE_ITERATIONS, "train_seconds": _seconds(trainer)}


def _train(config_file, output_dir, iterations, seed, stock, opts) -> Trainer:
    opts = {"OUTPUT_DIR": str(output_dir)} | (STOCK_COMPONENTS if stock else {}) | opts
    if seed is not None:
        opts["SEED"] = seed
    cfg = load_config(config_file, [part for pair in opts.items() for part in pair])
    if iterations:
        _stretch(cfg, iterations)
    cfg.freeze()
    check_config(cfg)
    for name in ("detectron2", "fvcore", "mrcnn_ext"):
        # detectron2 adds a console handler for every output folder: an earlier run's would print all twice.
        logging.getLogger(name).handlers.clear()
    start(cfg, argument_parser().parse_args([]), str(output_dir))
    # Written anew: JSONWriter appends.
    Path(output_dir, "metrics.json").unlink(missing_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    save_config(cfg, str(output_dir))
    trainer.train()
    return trainer


def _seconds(trainer) -> float:
    """Of the iterations alone: evaluation on the way is not training."""
    return trainer.storage.history("time").global_avg() * trainer.cfg.SOLVER.MAX_ITER


def _stretch(cfg, iterations):
    """The same schedule over another number of iterations; the warm-up, where there is room, stays as it is."""
    before, cfg.SOLVER.MAX_ITER = cfg.SOLVER.MAX_ITER, iterations
    for section, key in ((cfg.SOLVER, "CHECKPOINT_PERIOD"), (cfg.TEST, "EVAL_PERIOD")):
        section[key] = max(1, round(section[key] * iterations / before))


def _points(metrics: dict) -> dict:
    return {name: round(float(metrics[name]), 2) for name in ("AP", "AP50")}
