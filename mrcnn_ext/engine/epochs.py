"""The length of a training in epochs: passes over its images."""

import logging
import math
from collections.abc import Sequence

from detectron2.config import CfgNode, instantiate
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ..data.build import training_dicts
from .errors import UserError

__all__ = ["apply_epochs", "apply_lazy_epochs", "checked_epochs"]

# A warm-up takes no more of a training than this.
_WARMUP = 0.1


def checked_epochs(text: str) -> float:
    """
    Raises:
        UserError: it is no number above 0.
    """
    try:
        epochs = float(text)
    except ValueError:
        epochs = math.nan
    if not 0 < epochs < math.inf:
        raise UserError(f"epochs= must be a number above 0, got {text!r}")
    return epochs


def apply_epochs(cfg: CfgNode, epochs: float, opts: Sequence[str] = ()) -> list[str]:
    """Sets ``SOLVER.MAX_ITER`` to so many passes over the images that are trained on, and what depends on it: the steps
    of the learning rate and the periods of evaluations and checkpoints keep their shares of the training, and a warm-up
    takes a tenth of it at most. What the command line sets stays. Where people are cut out of the images, each is one.

    Args:
        cfg: with its datasets registered; changed.
        epochs: above 0, and not always whole.
        opts: KEY VALUE pairs of the command line.

    Returns:
        list: the keys that were set.

    Raises:
        UserError: ``SOLVER.MAX_ITER`` is set, too; there are no training data, or they cannot be read.
    """
    said = set(opts[::2])
    if "SOLVER.MAX_ITER" in said:
        raise UserError("epochs= and SOLVER.MAX_ITER both say how long to train: give one of them")
    if not cfg.DATASETS.TRAIN:
        raise UserError("epochs= needs training data: DATASETS.TRAIN is empty")
    try:
        images = len(training_dicts(cfg, cfg.DATASETS.TRAIN))
    except (OSError, ValueError, KeyError, AssertionError) as error:
        raise UserError(str(error).strip("'\"")) from error
    epoch, iterations = _iterations(images, cfg.SOLVER.IMS_PER_BATCH, epochs)
    share = iterations / cfg.SOLVER.MAX_ITER
    solver, changed = cfg.SOLVER, {"SOLVER.MAX_ITER": iterations}
    steps = tuple(sorted({max(1, round(step * share)) for step in solver.STEPS if step < solver.MAX_ITER}))
    changed["SOLVER.STEPS"] = tuple(step for step in steps if step < iterations)
    changed["SOLVER.WARMUP_ITERS"] = min(solver.WARMUP_ITERS, int(_WARMUP * iterations))
    for key, period in (
        ("SOLVER.CHECKPOINT_PERIOD", solver.CHECKPOINT_PERIOD),
        ("TEST.EVAL_PERIOD", cfg.TEST.EVAL_PERIOD),
    ):
        if period:
            changed[key] = max(epoch, round(period * share))
    changed = {key: value for key, value in changed.items() if key not in said}
    for key, value in changed.items():
        section, name = key.split(".")
        cfg[section][name] = value
    _tell(epochs, images, cfg.SOLVER.IMS_PER_BATCH, changed)
    return list(changed)


def apply_lazy_epochs(cfg: DictConfig, epochs: float, overrides: Sequence[str] = ()) -> list[str]:
    """As `apply_epochs`, for a LazyConfig, whose schedules are shares of the training: ``train.max_iter``,
    ``train.eval_period`` and ``train.checkpointer.period``."""
    said = {override.partition("=")[0].lstrip("+") for override in overrides}
    if "train.max_iter" in said:
        raise UserError("epochs= and train.max_iter both say how long to train: give one of them")
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if batch is None or OmegaConf.select(cfg, "dataloader.train.dataset") is None:
        raise UserError("epochs= needs dataloader.train.dataset and dataloader.train.total_batch_size")
    images = len(instantiate(cfg.dataloader.train.dataset))
    epoch, iterations = _iterations(images, batch, epochs)
    changed = {"train.max_iter": iterations}
    for key in ("train.eval_period", "train.checkpointer.period"):
        if period := OmegaConf.select(cfg, key):
            changed[key] = max(epoch, round(period * iterations / cfg.train.max_iter))
    changed = {key: value for key, value in changed.items() if key not in said}
    for key, value in changed.items():
        OmegaConf.update(cfg, key, value)
    _tell(epochs, images, batch, changed)
    return list(changed)


def _iterations(images, batch, epochs):
    epoch = max(1, math.ceil(images / batch))
    return epoch, max(1, round(epochs * epoch))


def _tell(epochs, images, batch, changed):
    if comm.is_main_process():
        values = ", ".join(f"{key} {value}" for key, value in changed.items())
        # A warning: nothing less is shown before the config says where logs go.
        logging.getLogger(__name__).warning(
            "epochs=%g of %d images in batches of %d: %s", epochs, images, batch, values
        )
