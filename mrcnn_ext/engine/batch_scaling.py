"""Batch and learning rate of a LazyConfig by the number of processes, as detectron2 has it for yaml configs."""

import logging

from detectron2.utils import comm
from omegaconf import DictConfig

__all__ = ["scale_lazily"]


def scale_lazily(cfg: DictConfig, processes: int) -> None:
    """Keeps the images of a process as they are where there are more or fewer processes than the config is for,
    ``train.reference_world_size`` (0: any): the batch and the learning rate grow with them, and iterations shrink
    (Goyal et al., *Accurate, Large Minibatch SGD*, 2017). It is what ``SOLVER.REFERENCE_WORLD_SIZE`` does in a yaml
    config. Says what it has changed.

    Args:
        cfg: changed, of settings that `check_lazy_settings` has seen; the schedule, in parts of the training, stays.
        processes: that train.
    """
    train, loader = cfg.train, cfg.dataloader.train
    reference = train.get("reference_world_size", 0)
    if reference in (0, processes):
        return
    batch, rate = loader.total_batch_size, cfg.optimizer.lr
    scale = processes / reference
    loader.total_batch_size = batch // reference * processes
    cfg.optimizer.lr = rate * scale
    iterations = train.max_iter
    train.max_iter = round(iterations / scale)
    train.eval_period = round(train.eval_period / scale)
    train.checkpointer.period = round(train.checkpointer.period / scale)
    train.reference_world_size = processes
    if comm.is_main_process():
        logging.getLogger(__name__).info(
            "The config is for %d processes, and there are %d: %d images an iteration instead of %d, learning rate %g "
            "instead of %g, %d iterations instead of %d",
            *(reference, processes, loader.total_batch_size, batch, cfg.optimizer.lr, rate),
            *(train.max_iter, iterations),
        )
