"""Training hooks."""

import contextlib
import functools
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from .averaging import WeightAverage
from .random_state import kept_random_state
from .steps import loss_normalizers

__all__ = ["ValidationLossHook", "compute_losses"]

# timm's batch norms contain their activation.
_LAYERS_WITH_PARTS = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.MultiheadAttention)


class ValidationLossHook(HookBase):
    """Stores the training losses on held-out data as ``val/loss_*`` and their sum as ``val/total_loss``.

    Runs every ``period`` iterations and after the last one, as detectron2's EvalHook does. It must be
    registered in every process; each takes its share of the data.

    Args:
        period: iterations between two runs; 0: only after training.
        model: as trained, DistributedDataParallel or not.
        build_loader: returns a loader of this process's share of the data, mapped as for training.
            Called once, when first needed; None if there are none to compute losses on.
        average: whose weights the losses are of; None for the model's own.
    """

    def __init__(
        self, period: int, model: nn.Module, build_loader: Callable, average: WeightAverage | None = None
    ):
        self._period = period
        self._model = model
        self._average = average
        self._loader = functools.cache(build_loader)

    def after_step(self):
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._run()

    def after_train(self):
        # Not after a training that failed.
        if self.trainer.iter >= self.trainer.max_iter:
            self._run()

    def _run(self):
        loader = self._loader()
        if loader is None:
            return
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            losses = compute_losses(self._model, loader)
        if comm.is_main_process():
            losses = {"total_loss": sum(losses.values()), **losses}
            self.trainer.storage.put_scalars(
                smoothing_hint=False, **{f"val/{name}": value for name, value in losses.items()}
            )
            logging.getLogger(__name__).info(
                "Validation losses: " + ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
            )
        comm.synchronize()


def compute_losses(model: nn.Module, loader: Iterable[list[dict]]):
    """Average a model's training losses over a loader, leaving the model and all random states as they were.

    The losses are those of training, except that layers which behave differently in training (batch norm,
    dropout) act as in inference. Random choices inside the model, such as the proposals that are sampled,
    depend only on the image: the result is the same however the data are shared among processes.

    Args:
        model: returns a dict of scalar losses in training mode.
        loader: batches with ground truth; this process's share of the data.

    Returns:
        dict[str, float]: losses averaged over the images of all processes; empty but in the main process.

    Raises:
        ValueError: there was no image in any process.
    """
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        # Processes may have unequal shares: no synchronisation between batches.
        model = model.module
    sums: defaultdict[str, float] = defaultdict(float)
    count = 0
    with (
        torch.no_grad(),
        _losses_without_side_effects(model) as restore,
        kept_random_state(),
        EventStorage(1),
    ):
        for batch in loader:
            restore()
            seed = zlib.crc32(str(batch[0].get("file_name", count)).encode())
            torch.manual_seed(seed)
            np.random.seed(seed)
            for name, loss in model(batch).items():
                sums[name] += loss.item() * len(batch)
            count += len(batch)

    shares = comm.gather((dict(sums), count))
    if not comm.is_main_process():
        return {}
    total = sum(count for _, count in shares)
    if total == 0:
        raise ValueError("no image with annotations to compute validation losses on")
    names = {name: None for sums, _ in shares for name in sums}
    return {name: sum(sums.get(name, 0.0) for sums, _ in shares) / total for name in names}


@contextlib.contextmanager
def _losses_without_side_effects(model):
    """Training mode, in which models return losses, but evaluation mode for layers. Gives what restores the state
    that losses change, buffers and dense detectors' running normalisers, and does so in the end."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    normalizers = loss_normalizers(model)

    def restore():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        for module, normalizer in normalizers.items():
            module.loss_normalizer = normalizer

    try:
        for module in modes:
            has_parts = next(module.children(), None) is not None
            module.training = module is model or (has_parts and not isinstance(module, _LAYERS_WITH_PARTS))
        yield restore
    finally:
        for module, mode in modes.items():
            module.training = mode
        restore()
