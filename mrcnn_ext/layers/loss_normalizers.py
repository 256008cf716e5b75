"""Losses that are divided by a count of what the images of a batch hold, where several processes share the batch."""

import contextlib
import contextvars
from collections.abc import Iterator

import torch.distributed as dist
from torch import Tensor

__all__ = ["are_shared", "shared_normalizers", "total_count"]

_processes = contextvars.ContextVar("processes", default=1)


@contextlib.contextmanager
def shared_normalizers(num_processes: int) -> Iterator[None]:
    """Within it, `total_count` counts over all processes, each of which must compute the same losses at the same time.

    Args:
        num_processes: of the default process group; 1: this process counts alone.
    """
    token = _processes.set(num_processes)
    try:
        yield
    finally:
        _processes.reset(token)


def are_shared() -> bool:
    """Whether `total_count` counts over several processes."""
    return _processes.get() > 1


def total_count(count: Tensor) -> Tensor:
    """A count that a loss is divided by, so that the mean of the loss over processes is that of the whole batch.

    With n processes the gradients, and the losses that are logged, are means over processes: ``sum_i / (N / n)``
    averages to ``sum / N`` for the ``N`` of all, whereas ``sum_i / N_i`` weighs a process of few objects more.

    Args:
        count: (), of this process.

    Returns:
        () float32: the mean count of the processes within `shared_normalizers`; else ``count``.
    """
    count = count.detach().float()
    if are_shared():
        count = count.clone()
        dist.all_reduce(count)
        count = count / _processes.get()
    return count
