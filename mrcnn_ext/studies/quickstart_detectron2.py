"""The quickstart's training and evaluation, by detectron2."""

import logging
from pathlib import Path

from ..engine.checks import check_config
from ..engine.launch import argument_parser
from ..engine.setup import load_config, save_config, start
from ..engine.trainer import Trainer
from .stock_components import STOCK_COMPONENTS

__all__ = ["train_and_evaluate"]


def train_and_evaluate(
    config_file: str, output_dir, *, opts: dict | None = None, stock: bool = False
) -> dict:
    """Trains the model of a yaml config from its start and evaluates it on DATASETS.TEST.

    Args:
        config_file: the config; its DATASETS.TEST is a dataset in COCO's format, then one in Cityscapes'.
        output_dir: for checkpoints, metrics and predictions.
        opts: config keys that go over the file.
        stock: use detectron2's own components instead of ours.

    Returns:
        dict: "coco": {"bbox", "segm", "keypoints": {"AP", "AP50"}}, "cityscapes": {"AP", "AP50"}, AP in points;
        "train_seconds"; "predictions", the COCO results file; "report", the page of the last evaluation.
    """
    opts = {**(opts or {}), "OUTPUT_DIR": str(output_dir)} | (STOCK_COMPONENTS if stock else {})
    cfg = load_config(config_file, [part for pair in opts.items() for part in pair])
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
    # Of the iterations alone: evaluation on the way is not training.
    seconds = trainer.storage.history("time").global_avg() * cfg.SOLVER.MAX_ITER
    results = trainer._last_eval_results
    coco, cityscapes = cfg.DATASETS.TEST
    return {
        "coco": {task: _points(results[coco][task]) for task in ("bbox", "segm", "keypoints")},
        "cityscapes": _points(results[cityscapes]["segm"]),
        "train_seconds": round(seconds, 1),
        "report": str(Path(output_dir, f"report_{coco}.html")),
        "predictions": str(Path(output_dir, "inference", coco, "coco_instances_results.json")),
    }


def _points(metrics: dict) -> dict:
    return {name: round(float(metrics[name]), 2) for name in ("AP", "AP50")}
