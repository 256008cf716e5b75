"""Hooks that save a training so that it can be continued as if it had never ended, and that continue it."""

import contextlib
import logging
import math
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..files import DiskFullError
from .averaging import WeightAverage
from .checkpoint import Checkpointer
from .data_order import ResumableLoader
from .errors import NonFiniteError, UserError, did_you_mean
from .interruption import Interrupted, Interruption
from .random_state import kept_random_state, random_state, set_random_state
from .steps import loss_normalizers
from .stopping import StopTraining

__all__ = ["BestHook", "CheckpointHook", "ResumeHook", "ResumingWriter", "TrainingState", "evaluation_hook"]

_SCALARS = 20  # values that the writers smooth over


class TrainingState:
    """What a resumed training needs besides weights, optimiser and schedule: each process's place in the data, random
    states, and buffers that processes do not share; and the scalars that are yet to be written.

    Args:
        step_trainer: gives the `StepTrainer`.
    """

    def __init__(self, step_trainer: Callable):
        self._step_trainer = step_trainer
        self._saved: dict[str, Any] | None = None
        self._loaded: Any = None  # a dict, once there is one

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    def collect(self, storage) -> None:
        """Gathers it from all processes, for the next ``state_dict``."""
        trainer = self._step_trainer()
        loader, model = trainer.data_loader, getattr(trainer.model, "module", trainer.model)
        here = {
            "random": random_state(),
            "loader": loader.state_dict() if isinstance(loader, ResumableLoader) else None,
            "normalizers": list(loss_normalizers(model).values()),
            # The main process's are in the model's state dict.
            "buffers": {}
            if comm.is_main_process()
            else {name: buffer.cpu() for name, buffer in model.named_buffers()},
        }
        scalars = {
            name: (storage.smoothing_hints()[name], history.values()[-_SCALARS:])
            for name, history in storage.histories().items()
        }
        self._saved = {"processes": comm.gather(here), "scalars": scalars}

    def state_dict(self):
        return self._saved

    def load_state_dict(self, state):
        self._loaded = state

    def restore_scalars(self, storage) -> None:
        for name, (smooth, values) in self._loaded["scalars"].items():
            for value, iteration in values:
                storage.put_scalar(name, value, smoothing_hint=smooth, cur_iter=iteration)

    def restore(self) -> None:
        """Each process takes its own."""
        trainer, processes = self._step_trainer(), self._loaded["processes"]
        loader, model = trainer.data_loader, getattr(trainer.model, "module", trainer.model)
        known = [state["loader"] for state in processes]
        same = len(processes) == comm.get_world_size()
        if not same:
            logging.getLogger(__name__).warning(
                "The checkpoint was saved by %d processes, now there are %d: the data go on after what was seen, "
                "random states begin anew",
                len(processes),
                comm.get_world_size(),
            )
        if isinstance(loader, ResumableLoader) and None not in known:
            if same:
                loader.load_state_dict(known[comm.get_rank()])
            else:
                loader.load_states_of_others(known)
        if not same:
            return
        mine = processes[comm.get_rank()]
        buffers = dict(model.named_buffers())
        with torch.no_grad():
            for name, value in mine["buffers"].items():
                if name in buffers:
                    buffers[name].copy_(value)
        for module, value in zip(loss_normalizers(model), mine["normalizers"], strict=False):
            module.loss_normalizer = value
        set_random_state(mine["random"])


class CheckpointHook(HookBase):
    """Saves ``model_<iteration>.pth`` every ``period`` iterations and ``model_final.pth`` after the last, and, when a
    signal asks the training to end, a checkpoint at once. In all processes.

    Args:
        checkpointer: with ``state`` among its checkpointables.
        state: of the training.
        step_trainer: gives the `StepTrainer`, which knows of signals.
        period: 0 for the last alone.
        keep: newest ones of ``model_<iteration>.pth`` that stay; 0 for all.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        state: TrainingState,
        step_trainer: Callable,
        period: int,
        keep: int = 0,
    ):
        self._checkpointer = checkpointer
        self._state = state
        self._step_trainer = step_trainer
        self._period = period
        self._keep = keep
        self._last = ""

    def after_step(self):
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0:
            self.save()
            self._drop_old()
        if next_iter >= self.trainer.max_iter:
            self.save("model_final")
        number = self._step_trainer().interrupted_by
        if number:
            self.end_by_signal(number)

    def finish(self):
        """Saves the final checkpoint where a training was killed between the last iteration's and that one."""
        if Path(self._checkpointer.get_checkpoint_file()).name != "model_final.pth":
            self.save("model_final")

    def after_train(self):
        loader = self._step_trainer().data_loader
        if isinstance(loader, ResumableLoader):
            loader.close()

    def end_by_signal(self, number):
        """Saves a checkpoint, unless this iteration has one, and ends the process."""
        name = f"model_{self.trainer.iter:07d}"
        if self._last not in (name, "model_final"):
            self.save()
            self._drop_old()
        # Other hooks take the end of a training for its completion.
        self.trainer.max_iter = sys.maxsize
        if comm.is_main_process():
            message = "%s: stopped after iteration %d and saved %s.pth in %s; continue with --resume"
            arguments = (
                signal.Signals(number).name,
                self.trainer.iter + 1,
                self._last,
                self._checkpointer.save_dir,
            )
            logging.getLogger(__name__).info(message, *arguments)
        comm.synchronize()
        sys.exit(128 + number)

    def save(self, name="", tag=True):
        """Saves a checkpoint, by default under the name of the iteration; its errors are raised in all processes."""
        name = name or f"model_{self.trainer.iter:07d}"
        self._state.collect(self.trainer.storage)
        error = None
        try:
            self._checkpointer.save(name, tag=tag, iteration=self.trainer.iter)
        except (DiskFullError, NonFiniteError) as caught:
            error = caught
        error = comm.all_gather(error)[0]
        if error is not None:
            raise error
        if tag:
            self._last = name

    def _drop_old(self):
        if not self._keep or not comm.is_main_process():
            return
        last = self._checkpointer.get_checkpoint_file()
        numbered = {}
        for file in self._checkpointer.get_all_checkpoint_files():
            match = re.fullmatch(r"model_(\d{7,})\.pth", Path(file).name)
            if match and int(match[1]) <= self.trainer.iter:
                numbered[int(match[1])] = file
        for number in sorted(numbered)[: -self._keep]:
            if numbered[number] != last:
                Path(numbered[number]).unlink()


class BestHook(HookBase):
    """Saves ``model_best.pth`` whenever a metric is better than ever, and ends the training when it no longer improves.
    After the hooks that evaluate, in all processes.

    Args:
        metric: as in ``metrics.json``, "segm/AP" say; of names with "loss" the lowest is the best.
        checkpoint_hook: saves.
        period: of evaluation.
        patience: evaluations without improvement that end the training; 0: none.
    """

    def __init__(self, metric: str, checkpoint_hook: CheckpointHook, period: int, patience: int = 0):
        self._metric = metric
        self._checkpoint_hook = checkpoint_hook
        self._period = period
        self._patience = patience
        self._state = {"best": None, "iteration": -1, "without": 0}

    def after_step(self):
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter != self.trainer.max_iter:
            self._compare()
            if 0 < self._patience <= self._state["without"]:
                self._checkpoint_hook.save("model_final")
                logging.getLogger(__name__).info(
                    "%s has not improved in %d evaluations: training ends. Best: %.4g, after iteration %d",
                    self._metric,
                    self._state["without"],
                    self._state["best"],
                    self._state["iteration"] + 1,
                )
                raise StopTraining

    def after_train(self):
        if self.trainer.max_iter <= self.trainer.iter:
            self.trainer.iter -= 1  # the checkpoint is of the last iteration, whatever counts beyond it
            try:
                self._compare()
            finally:
                self.trainer.iter += 1

    def _compare(self):
        value = comm.all_gather(self._latest())[0]
        if isinstance(value, str):
            raise UserError(value)
        best = self._state["best"]
        worse = best is not None and not (value < best if "loss" in self._metric else value > best)
        if worse or math.isnan(value):
            self._state["without"] += 1
            return
        self._state = {"best": value, "iteration": self.trainer.iter, "without": 0}
        self._checkpoint_hook.save("model_best", tag=False)

    def _latest(self):
        """The metric; or, if there is none of its name, the message."""
        latest = self.trainer.storage.latest()
        if not comm.is_main_process():
            return None
        if self._metric not in latest:
            known = sorted(name for name in latest if "/" in name)
            return (
                f"CHECKPOINT.BEST (train.checkpointer.best): the evaluation gives no {self._metric!r}"
                f"{did_you_mean(self._metric, known)} (there is {', '.join(known[:12])}, ...)"
            )
        return latest[self._metric][0]

    def state_dict(self):
        return dict(self._state)

    def load_state_dict(self, state):
        self._state = dict(state)


def evaluation_hook(
    period: int,
    evaluate: Callable,
    average: WeightAverage | None,
    checkpoint_hook: CheckpointHook,
    interruption: Interruption | None,
):
    """detectron2's EvalHook, which leaves the training as it was.

    Args:
        period: iterations between two evaluations; 0: after training alone.
        evaluate: gives the metrics.
        average: whose weights are evaluated; None for the model's own.
        checkpoint_hook: saves when a signal arrives meanwhile; the resumed training evaluates again.
        interruption: None where no signals are caught.
    """

    def evaluate_apart():
        # Several processes would not agree on when to stop.
        breaking = interruption is not None and comm.get_world_size() == 1
        try:
            with (
                kept_random_state(),
                average.in_place() if average is not None else contextlib.nullcontext(),
                interruption.breaking() if breaking else contextlib.nullcontext(),
            ):
                return evaluate()
        except Interrupted:
            if hook.trainer.iter < hook.trainer.max_iter:
                checkpoint_hook.end_by_signal(interruption.number)
            sys.exit(128 + interruption.number)  # after training, whose last checkpoint is there

    hook = hooks.EvalHook(period, evaluate_apart)
    return hook


class ResumingWriter(hooks.PeriodicWriter):
    """detectron2's PeriodicWriter, the last hook, and `ResumeHook` in one: a hook that a script inserts before the last
    is there when a training goes on.

    Args:
        state, trainer_hooks: of `ResumeHook`.
        writers: empty but in the main process.
        period: iterations between two writes.
    """

    def __init__(self, state: TrainingState, trainer_hooks: Callable, writers: list, period: int = 20):
        super().__init__(writers, period)
        able = [writer for writer in writers if hasattr(writer, "resume_at")]
        self._resume = ResumeHook(state, trainer_hooks, able)

    def before_train(self):
        self._resume.trainer = self.trainer
        self._resume.before_train()


class ResumeHook(HookBase):
    """Continues where a checkpoint was saved: within the iteration, behind the `CheckpointHook`. The last hook, in all
    processes.

    Args:
        state: as loaded.
        trainer_hooks: gives the trainer's hooks.
        writers: those that can leave out what they had written beyond the checkpoint.
    """

    def __init__(self, state: TrainingState, trainer_hooks: Callable, writers: Sequence = ()):
        self._state = state
        self._trainer_hooks = trainer_hooks
        self._writers = writers

    def before_train(self):
        trainer = self.trainer
        start = trainer.start_iter
        if start == 0:
            return
        if not self._state.loaded:
            logging.getLogger(__name__).warning(
                "The checkpoint holds neither the order of the data nor random states: they begin anew"
            )
            return
        for writer in self._writers:
            writer.resume_at(start - 1)
        self._state.restore_scalars(trainer.storage)
        self._state.restore()
        # The iteration that the checkpoint was saved in is not over: evaluation and writers come after it.
        all_hooks = self._trainer_hooks()
        index = next(i for i, hook in enumerate(all_hooks) if isinstance(hook, CheckpointHook))
        trainer.iter = trainer.storage.iter = start - 1
        if start >= trainer.max_iter:
            all_hooks[index].finish()
        for hook in all_hooks[index + 1 :]:
            hook.after_step()
        trainer.iter = trainer.storage.iter = start
        if start >= trainer.max_iter:
            trainer.iter = start - 1  # there is no step left, after which the loop counts on
