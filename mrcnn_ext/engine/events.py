"""What a training run writes: a line to read, JSON, TensorBoard."""

import datetime
import json
import logging
import os
import sys

import torch
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

from ..files import naming_full_disk, replacing
from .loggers import build_loggers

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

__all__ = ["MetricsWriter", "ProgressPrinter", "build_writers", "peak_memory"]


def build_writers(output_dir, max_iter, loggers=(), config=None):
    """A progress line, ``metrics.json`` and TensorBoard files in ``output_dir``, and the experiment trackers that
    ``loggers`` names, which get ``config``: see `build_loggers`."""
    os.makedirs(output_dir, exist_ok=True)
    return [
        ProgressPrinter(max_iter),
        MetricsWriter(os.path.join(output_dir, "metrics.json")),
        CurvesWriter(output_dir),
        *build_loggers(loggers, output_dir, config or {}),
    ]


class MetricsWriter(JSONWriter):
    """detectron2's writer of ``metrics.json``, in which a resumed training has each iteration once."""

    def __init__(self, json_file, window_size=20):
        super().__init__(json_file, window_size)
        self._path = json_file

    def write(self):
        rows = {}
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                rows.setdefault(iteration, {"iteration": iteration})[name] = value
        if not rows:
            return
        self._last_write = max(rows)
        with naming_full_disk(self._path):
            for iteration in sorted(rows):
                self._file_handle.write(json.dumps(rows[iteration], sort_keys=True) + "\n")
            self._file_handle.flush()
            os.fsync(self._file_handle.fileno())

    def resume_at(self, iteration):
        """Leaves out lines from ``iteration`` on, which will be written again, and one that a kill cut short."""
        self._file_handle.close()
        with open(self._path) as file:
            lines = [line for line in file if _iteration(line) < iteration]
        with replacing(self._path, "w") as file:
            file.writelines(lines)
        self._file_handle = open(self._path, "a")
        # What came after the last line and before the checkpoint is in the checkpoint, and in no line yet.
        self._last_write = max(map(_iteration, lines), default=-1)


def _iteration(line):
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class CurvesWriter(TensorboardXWriter):
    """detectron2's writer of TensorBoard files."""

    def resume_at(self, iteration):
        """Writes nothing again from before ``iteration``."""
        self._last_write = iteration - 1


class ProgressPrinter(EventWriter):
    """Logs iteration, time left, losses (medians over a window), time per iteration, learning rate, memory.

    Memory is the peak allocated on the GPU, or the peak resident size of this process where there is none.

    Args:
        max_iter: iterations of the whole training.
        window_size: iterations that a loss is smoothed over.
    """

    LOGGER = "detectron2.engine.progress"

    def __init__(self, max_iter: int, window_size: int = 20):
        self._logger = logging.getLogger(self.LOGGER)
        self._max_iter = max_iter
        self._window_size = window_size

    def write(self):
        storage = get_event_storage()
        # After the last iteration there is nothing new to tell; other writers write evaluation results then.
        if storage.iter >= self._max_iter:
            return
        histories = storage.histories()

        def recent(name):
            return histories[name].median(storage.count_samples(name, self._window_size))

        fields = [f"iter {storage.iter + 1}/{self._max_iter}"]
        if "time" in histories:
            seconds = histories["time"].median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            fields.append(f"eta {datetime.timedelta(seconds=int(seconds))}")
        if "total_loss" in histories:
            parts = [f"{name[5:]} {recent(name):.3g}" for name in histories if name.startswith("loss_")]
            fields.append(f"loss {recent('total_loss'):.4g}" + (f" ({', '.join(parts)})" if parts else ""))
        if "time" in histories:
            fields.append(f"{recent('time'):.3g} s/iter (data {recent('data_time'):.2g})")
        if "lr" in histories:
            fields.append(f"lr {histories['lr'].latest():.3g}")
        if (memory := peak_memory()) is not None:
            fields.append(f"mem {memory / 2**20:.0f}M")
        self._logger.info(" | ".join(fields))


def peak_memory():
    """Most bytes allocated on the GPU, or resident in this process where there is none; None where nobody knows."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
