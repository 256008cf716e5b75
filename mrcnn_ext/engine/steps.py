"""The step of training: forward, backward, a look at what is finite, and the optimiser's step."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from ..layers.loss_normalizers import shared_normalizers
from .errors import NonFiniteError, UserError
from .interruption import Interruption
from .sharding import distribute_state, local
from .stopping import Stoppable

__all__ = ["StepTrainer"]


class _Steps(SimpleTrainer):
    """detectron2's SimpleTrainer, and its AMPTrainer, on any device, with steps that are known to be finite.

    Losses and gradients that are not finite end the training with a message that names the losses and the images, or,
    up to ``skip_nonfinite`` times, leave the model as it was. A loss that is normalised by what the images hold is
    normalised over the images of all processes where the head asks for it.

    Args:
        model, data_loader, optimizer: as of SimpleTrainer.
        autocast: precision of the forward pass; None for the parameters' own.
        grad_scaler: scales the loss, which float16 needs.
        accumulate: parts that a batch is cut into, run one after the other; the optimiser steps once by the
            mean of their gradients.
        skip_nonfinite: steps that may be skipped in all.
        interruption: signals to look at.

    Attributes:
        interrupted_by: number of the signal that some process caught; 0: none. The same in all processes.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        autocast: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        accumulate: int = 1,
        skip_nonfinite: int = 0,
        interruption: Interruption | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        self.interrupted_by = 0
        self.interruption = interruption
        self.grad_scaler = grad_scaler
        self._autocast = autocast
        self._accumulate = accumulate
        self._skip_nonfinite = skip_nonfinite
        self._skipped = 0

    def run_step(self):
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        kept = _Buffers(self.model) if self._skip_nonfinite > self._skipped else None
        self.optimizer.zero_grad()
        try:
            losses = self._forward_backward(batch)
        except FloatingPointError as error:
            # detectron2 looks at the proposals, in the midst of a forward pass that other processes may finish.
            message = f"iteration {self.iter + 1}: {error} ({_files(batch)})"
            kept = kept if comm.get_world_size() == 1 else None
        else:
            self.after_backward()
            if self._all_finite(losses):
                self._write_metrics(losses, data_time)
                self._step()
                return
            message = self._message(losses, batch)
        if kept is None:
            raise NonFiniteError(message + _ADVICE)
        kept.restore()
        self.optimizer.zero_grad()
        self._skipped += 1
        if comm.is_main_process():
            logging.getLogger(__name__).warning(
                "%s; skipped (%d of at most %d)", message, self._skipped, self._skip_nonfinite
            )

    def _forward_backward(self, batch):
        """Gradients of the mean loss; returns the losses."""
        size = math.ceil(len(batch) / self._accumulate)
        parts = [batch[i : i + size] for i in range(0, len(batch), size)]
        device = next(self.model.parameters()).device.type
        totals = {}
        for part in parts:
            # Processes add their gradients up once, with those of the last part.
            alone = part is not parts[-1] and isinstance(self.model, DistributedDataParallel)
            with self.model.no_sync() if alone else contextlib.nullcontext():
                with (
                    torch.autocast(device, self._autocast, enabled=self._autocast is not None),
                    shared_normalizers(comm.get_world_size()),
                ):
                    losses = self.model(part)
                if isinstance(losses, torch.Tensor):
                    losses = {"total_loss": losses}
                losses = {name: loss * (len(part) / len(batch)) for name, loss in losses.items()}
                total = sum(losses.values())
                (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + loss.detach()
        return totals

    def _all_finite(self, losses):
        """Whether losses and gradients are finite in all processes. Tells the others of a signal, too."""
        total = sum(losses.values())
        finite = total.isfinite()
        gradients = [local(p.grad) for p in self.model.parameters() if p.grad is not None]
        gradients = [
            gradient for gradient in gradients if gradient.numel()
        ]  # a process may have no part of it
        # The gradients of float16 overflow now and then, which is what the scaler looks for.
        if self.grad_scaler is None and gradients:
            largest = torch.stack(torch._foreach_norm(gradients, torch.inf))
            finite = finite & largest.isfinite().all()
        signal = 0 if self.interruption is None else self.interruption.number
        flags = torch.stack(
            [(~finite).to(torch.float32), torch.full_like(total, signal, dtype=torch.float32)]
        )
        if comm.get_world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        wrong, signal = flags.tolist()
        self.interrupted_by = int(signal)
        return not wrong

    def _step(self):
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _message(self, losses, batch):
        here = ({name: loss.item() for name, loss in losses.items()}, _files(batch))
        processes = comm.all_gather(here)
        wrong = [p for p in processes if not all(map(math.isfinite, p[0].values()))]
        parts = []
        for terms, files in wrong or processes:
            terms = ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
            parts.append(f"{terms} {files}")
        what = "a loss" if wrong else "a gradient"
        return f"iteration {self.iter + 1}: {what} is not finite ({'; '.join(parts)})"

    def state_dict(self):
        state = super().state_dict()
        state["skipped"] = self._skipped
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict):
        """As detectron2's.

        Raises:
            UserError: it is of another optimizer.
        """
        self._check_optimizer(state_dict.get("optimizer"))
        super().load_state_dict(state_dict)
        distribute_state(self.optimizer)
        self._skipped = state_dict.get("skipped", 0)
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _check_optimizer(self, state):
        """PyTorch finds out later, at a key that its groups of parameters do not have."""
        if not isinstance(state, Mapping) or not state.get("param_groups"):
            return
        ours, theirs = self.optimizer.param_groups, state["param_groups"]
        lacking = sorted(self.optimizer.defaults.keys() - theirs[0].keys() - _ADDED)
        sizes = [[len(group["params"]) for group in groups] for groups in (theirs, ours)]
        if not lacking and sizes[0] == sizes[1]:
            return
        reason = f"its groups lack {', '.join(lacking)}" if lacking else "its groups have other sizes"
        raise UserError(
            f"--resume: the checkpoint was trained by another optimizer than {type(self.optimizer).__name__} "
            f"({reason}), or with other parameters trained: give SOLVER.OPTIMIZER and the model's config as they were, "
            "or begin a new training from it with weights= (MODEL.WEIGHTS)"
        )


# Options that versions of PyTorch have added to its optimizers, and which have defaults.
_ADDED = {
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "maximize",
    "decoupled_weight_decay",
    "nesterov",
}


class StepTrainer(Stoppable, _Steps):
    __doc__ = _Steps.__doc__


def _files(batch):
    return "for " + ", ".join(str(item.get("file_name", "?")) for item in batch)


_ADVICE = (
    ". The weights were not changed, and the last checkpoint is good. Try a lower learning rate, a longer warm-up, "
    "gradient clipping (SOLVER.CLIP_GRADIENTS), float32 if this is float16, or a look at these images; "
    "SOLVER.SKIP_NONFINITE N (train.skip_nonfinite=N) skips up to N such iterations"
)


class _Buffers:
    """What a forward pass changes besides gradients: statistics of normalisation, normalisers of dense detectors."""

    def __init__(self, model):
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        self._normalizers = loss_normalizers(model)

    @torch.no_grad()
    def restore(self):
        for buffer, value in self._buffers:
            buffer.copy_(value)
        for module, value in self._normalizers.items():
            module.loss_normalizer = value


def loss_normalizers(model):
    """The running normalisers that detectron2's dense detectors keep as plain numbers: module -> number."""
    modules = model.modules()
    return {m: m.loss_normalizer for m in modules if isinstance(getattr(m, "loss_normalizer", None), float)}
