"""Losses that are divided by a count of what the images of a batch hold, where several processes share the batch."""

import contextlib
import contextvars
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["are_shared", "share_of_mean", "shared_normalizers", "total_count"]

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


def share_of_mean(count: int, device: torch.device) -> float | Tensor:
    """What turns a mean over ``count`` objects of this process into its share of the mean over those of all.

    The mean of ``loss * share`` over the processes is the mean over all objects. Every process must call it, those
    without objects too.

    Args:
        count: objects of this process.
        device: of the tensor that is summed up over processes.

    Returns:
        () float32; 1 outside `shared_normalizers`.
    """
    if not are_shared():
        return 1.0
    own = torch.tensor(float(count), device=device)
    return own / total_count(own).clamp(min=1e-6)
