"""Train and evaluate the model of a yaml config: what ``tools/train_net.py`` runs."""

import argparse
import contextlib

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..data.reading_once import reading_once
from .checkpoint import Checkpointer
from .checks import check_config
from .elastic import goes_on
from .interruption import Interruption
from .setup import is_of_training, save_config, setup
from .trainer import Trainer

__all__ = ["main"]


def main(args: argparse.Namespace):
    """Train, or evaluate with ``--eval-only``, in this process.

    Args:
        args: of :func:`mrcnn_ext.engine.argument_parser`.

    Returns:
        dict: metrics of the evaluation, in the main process.

    Raises:
        UserError: the config, a dataset or the weights are wrong.
    """
    with contextlib.ExitStack() as reading:
        reading.enter_context(reading_once())
        cfg = setup(args)
        if args.eval_only:
            check_config(cfg, eval_only=True)
            reading.close()
            return _evaluate(cfg, args)
        with Interruption().catching() as interruption:
            trainer = Trainer(cfg, interruption, args.trust_files)
            reading.close()
            if args.resume:
                trainer.checkpointer.require_checkpoint()
            trainer.resume_or_load(resume=args.resume or goes_on(cfg.OUTPUT_DIR))
            save_config(cfg, cfg.OUTPUT_DIR)
            trainer.train()
        return getattr(trainer, "_last_eval_results", {})


def _evaluate(cfg, args):
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(
        model,
        save_dir=cfg.OUTPUT_DIR,
        allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS,
        trust=args.trust_files,
        for_inference=True,
        evaluated_on=cfg.DATASETS.TEST,
    )
    if args.resume:
        checkpointer.require_checkpoint()
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    if not is_of_training(cfg.OUTPUT_DIR):
        save_config(cfg, cfg.OUTPUT_DIR)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_augmentation(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)
    return results
