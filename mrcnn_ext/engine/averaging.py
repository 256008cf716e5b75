"""An exponential moving average of a model's weights."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = ["AveragingHook", "WeightAverage"]


class WeightAverage:
    """Moving average of a model's parameters and buffers.

    After step t it is ``d * average + (1 - d) * weights`` with ``d = min(decay, t / (t + 9))``, so that the first steps
    do not outweigh the others (as in TensorFlow's ExponentialMovingAverage). What is no floating-point number is taken
    as it is.

    Args:
        model: on its device; not the DistributedDataParallel around it.
        decay: in [0, 1), 0.9999 say.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._model = model
        self._decay = decay
        self._average: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights of a step, counted from 1, in."""
        weights = self._model.state_dict()
        if self._average is None:
            self._average = {name: value.clone() for name, value in weights.items()}
        decay = min(self._decay, step / (step + 9))
        for name, value in weights.items():
            average = self._average[name]
            if value.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def state_dict(self) -> dict[str, Tensor] | None:
        """The average; None before the first step."""
        return self._average

    def load_state_dict(self, average: dict[str, Tensor]) -> None:
        self._average = {
            name: average[name].to(value.device) for name, value in self._model.state_dict().items()
        }

    @contextlib.contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """The model has the average as its weights, and afterwards its own, to the bit. In all processes at once."""
        if self._average is None:
            yield
            return
        if comm.get_world_size() > 1:
            # Buffers, which each process has its own of, are the main process's, as in its checkpoints.
            for name, _ in self._model.named_buffers():
                if name in self._average:
                    dist.broadcast(self._average[name], 0)
        weights = self._model.state_dict()
        own = {name: value.clone() for name, value in weights.items()}
        try:
            for name, value in weights.items():
                value.copy_(self._average[name])
            yield
        finally:
            for name, value in weights.items():
                value.copy_(own[name])


class AveragingHook(HookBase):
    """Updates a `WeightAverage` after each step. Before the hook that saves checkpoints, in all processes."""

    def __init__(self, average: WeightAverage):
        self._average = average

    def after_step(self):
        self._average.update(self.trainer.iter + 1)
