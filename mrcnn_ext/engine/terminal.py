"""A training shown in a terminal: bars, losses, time left, memory."""

from __future__ import annotations

import datetime
import logging
import os
import re
import sys
import time
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .events import ProgressPrinter, peak_memory

__all__ = ["TerminalView", "build_terminal_view", "is_terminal"]

_EVALUATION = re.compile(r"Inference done (\d+)/(\d+)")  # what detectron2's inference_on_dataset logs
_MOST_RESULTS = 8


def is_terminal() -> bool:
    """Whether the standard output is a terminal on which lines can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def build_terminal_view(enabled: bool) -> list[HookBase]:
    """The view as a list of one hook; empty where it is not wanted, off a terminal, and beside the main process."""
    return [TerminalView()] if enabled and comm.is_main_process() and is_terminal() else []


class TerminalView(HookBase):
    """Keeps a few lines at the bottom of the terminal up to date, below what is logged.

    While it is shown, the handlers that log to the terminal leave out the lines that it stands for: those of
    `ProgressPrinter` and detectron2's progress of an evaluation. Log files have them as ever. Behind the hooks that
    compute something.

    Args:
        console: where to draw; default: the standard output.
        window_size: iterations that a loss is smoothed over.
        interval: seconds between two drawings, at least.
    """

    def __init__(self, console: Console | None = None, window_size: int = 20, interval: float = 0.2):
        self._console = console or Console(file=sys.stdout)
        self._window_size = window_size
        self._interval = interval
        self._live = None
        self._handlers: list[tuple[logging.Handler, Any]] = []
        self._drawn = 0.0

    def before_train(self):
        left = TextColumn("{task.fields[left]}")
        columns = (TextColumn("{task.description:<10}"), BarColumn(40), MofNCompleteColumn(), left)
        self._bars = Progress(*columns, console=self._console)
        self._training = self._bars.add_task("training", total=self.trainer.max_iter, left="")
        self._evaluation = self._bars.add_task("evaluation", total=None, left="", visible=False)
        # No thread draws: one that holds a lock while loader processes are forked would stop them.
        self._live = Live(self._bars, console=self._console, auto_refresh=False, transient=False)
        terminals = (sys.stdout, sys.stderr)
        self._live.start()
        self._filter = _Filter(self)
        for handler in _handlers_on(terminals):
            self._handlers.append((handler, handler.stream))
            handler.setStream(sys.stdout)  # which is drawn above the lines now
            handler.addFilter(self._filter)
        self.update(force=True)

    def after_step(self):
        self._bars.update(self._evaluation, visible=False)
        self.update(force=self.trainer.iter + 1 >= self.trainer.max_iter)

    def after_train(self):
        if self._live is None:
            return
        self._bars.update(self._evaluation, visible=False)
        self.update(force=True)
        for handler, stream in self._handlers:
            handler.removeFilter(self._filter)
            handler.setStream(stream)
        self._handlers.clear()
        self._live.stop()
        self._live = None

    def update(self, force: bool = False) -> None:
        """Draws, unless that was done a moment ago."""
        if self._live is None or (not force and time.monotonic() - self._drawn < self._interval):
            return
        self._drawn = time.monotonic()
        done = min(self.trainer.iter + 1, self.trainer.max_iter) if self._begun() else self.trainer.start_iter
        self._bars.update(self._training, completed=done, left=self._time_left())
        self._live.update(Group(self._losses(), self._bars), refresh=True)

    def show_evaluation(self, done: int, total: int) -> None:
        """Shows how many of a test set's batches are done."""
        self._bars.update(self._evaluation, completed=done, total=total, visible=done < total)
        self.update()

    def _begun(self):
        return "total_loss" in self.trainer.storage.histories()

    def _recent(self, name):
        storage = self.trainer.storage
        return storage.histories()[name].median(storage.count_samples(name, self._window_size))

    def _time_left(self):
        histories = self.trainer.storage.histories()
        if "time" not in histories:
            return ""
        seconds = histories["time"].median(1000) * max(0, self.trainer.max_iter - self.trainer.iter - 1)
        return f"{datetime.timedelta(seconds=int(seconds))} left"

    def _losses(self):
        """Two columns: losses, and whatever else there is to know."""
        storage = self.trainer.storage
        latest, histories = storage.latest(), storage.histories()
        losses = Table(box=None, padding=(0, 2, 0, 0))
        for title in ("loss", "training", "validation"):
            losses.add_column(title, justify="left" if title == "loss" else "right", header_style="bold")
        names = [name for name in histories if name == "total_loss" or name.startswith("loss_")]
        for name in sorted(names, key=lambda name: (name == "total_loss", name)):
            validation = latest.get(f"val/{name}")
            shown = "" if validation is None else f"{validation[0]:.4g}"
            title = "total" if name == "total_loss" else name.removeprefix("loss_")
            style = "bold" if name == "total_loss" else ""
            losses.add_row(title, f"{self._recent(name):.4g}", shown, style=style)
        facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        if "time" in histories:
            waiting = f" ({self._recent('data_time'):.2g} s for data)" if "data_time" in histories else ""
            facts.add_row("iteration", f"{self._recent('time'):.3g} s{waiting}")
        if "lr" in histories:
            facts.add_row("learning rate", f"{histories['lr'].latest():.3g}")
        if (memory := peak_memory()) is not None:
            facts.add_row("memory", f"{memory / 2**20:,.0f} MiB at most")
        results = [name for name in latest if name.endswith("/AP")]
        for name in results[:_MOST_RESULTS]:
            facts.add_row(
                name.removesuffix("/AP"), f"AP {latest[name][0]:.1f} at iteration {latest[name][1]}"
            )
        both = Table(box=None, show_header=False, padding=(0, 4, 0, 0))
        both.add_row(losses, facts)
        return both


class _Filter(logging.Filter):
    def __init__(self, view):
        super().__init__()
        self._view = view

    def filter(self, record):
        if record.name == ProgressPrinter.LOGGER:
            return False
        progress = _EVALUATION.match(record.getMessage())
        if progress:
            self._view.show_evaluation(int(progress[1]), int(progress[2]))
        return not progress


def _handlers_on(streams):
    """Those of all loggers that write to one of some streams."""
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    found = {}
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and any(
                handler.stream is stream for stream in streams
            ):
                found[id(handler)] = handler
    return list(found.values())
