"""Experiment trackers that a training writes to, through their own libraries."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Mapping, Sequence

from detectron2.engine import HookBase
from detectron2.utils.events import EventWriter, get_event_storage

from ..files import replacing
from .errors import UserError, did_you_mean

__all__ = ["LOGGERS", "LoggersHook", "MLflowWriter", "WandbWriter", "build_loggers", "check_loggers"]


class TrackingWriter(EventWriter):
    """Writes every scalar of the event storage once, at its iteration; a subclass says to whom.

    The run begins before the first iteration. Its id is kept in the output folder, so that a resumed training goes on
    with the same run.

    Args:
        output_dir: of the training; its last part names the run, unless the library's own settings do.
        config: of the training, nested dicts of plain values.
        window_size: iterations that a loss is smoothed over.
    """

    name = ""
    library = ""

    def __init__(self, output_dir: str, config: Mapping, window_size: int = 20):
        self._output_dir = os.path.abspath(output_dir)
        self._config = config
        self._window_size = window_size
        self._last_write = -1
        self._run = None

    def start(self, resumed: bool) -> None:
        """Begins a run, or goes on with that of the output folder.

        Raises:
            UserError: the library refuses; the message has its reason.
        """
        path = os.path.join(self._output_dir, f"{self.name}_run.json")
        known = None
        if resumed and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                known = json.load(file)["id"]
        try:
            run_id = self._begin(os.path.basename(self._output_dir), known)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UserError(f"{KEY}: {self.name!r} does not begin a run: {reason}") from error
        with replacing(path, "w") as file:
            json.dump({"id": run_id}, file)

    def resume_at(self, iteration: int) -> None:
        """Writes nothing again from before ``iteration``."""
        self._last_write = iteration - 1

    def write(self):
        rows = {}
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write and math.isfinite(value):
                rows.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(rows):
            self._log(rows[iteration], iteration)
        self._last_write = max(rows, default=self._last_write)

    def close(self):
        if self._run is not None:
            self._end()
            self._run = None

    def _begin(self, name, run_id):
        """Begins or continues a run; returns its id."""
        raise NotImplementedError

    def _log(self, scalars, iteration):
        raise NotImplementedError

    def _end(self):
        raise NotImplementedError


class WandbWriter(TrackingWriter):
    """Weights & Biases. Its environment variables apply: ``WANDB_PROJECT``, ``WANDB_NAME``, ``WANDB_MODE``."""

    name = library = "wandb"

    def _begin(self, name, run_id):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "mrcnn_ext"),
            name=os.environ.get("WANDB_NAME", name),
            dir=self._output_dir,
            config=self._config,
            id=run_id,
            resume="allow" if run_id else None,
        )
        # A resumed training writes iterations again; wandb's own steps cannot go back.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")
        return self._run.id

    def _log(self, scalars, iteration):
        self._run.log({"iteration": iteration, **scalars})

    def _end(self):
        self._run.finish()


class MLflowWriter(TrackingWriter):
    """MLflow. Its environment variables apply: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``."""

    name = library = "mlflow"

    def _begin(self, name, run_id):
        import mlflow

        self._mlflow = mlflow
        self._run = mlflow.start_run(run_id=run_id, run_name=None if run_id else name)
        if run_id is None:
            settings = [(key, str(value)[:500]) for key, value in _flat(self._config)]
            for start in range(0, len(settings), 100):  # the server's limit
                mlflow.log_params(dict(settings[start : start + 100]))
        return self._run.info.run_id

    def _log(self, scalars, iteration):
        # Of metrics' names MLflow takes letters, digits and these.
        names = {"".join(c if c.isalnum() or c in "_-. /" else "_" for c in name): name for name in scalars}
        self._mlflow.log_metrics({clean: scalars[name] for clean, name in names.items()}, step=iteration)

    def _end(self):
        self._mlflow.end_run()


KEY = "LOGGERS (train.loggers)"
LOGGERS = {writer.name: writer for writer in (WandbWriter, MLflowWriter)}


def check_loggers(names: Sequence[str]) -> None:
    """Check ``LOGGERS`` of a config before anything is built.

    Raises:
        UserError: a name is unknown, or its library is not installed.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{KEY} must be a list of names, ["wandb"] say; got {names!r}')
    for name in names:
        if name not in LOGGERS:
            known = ", ".join(map(repr, LOGGERS))
            raise UserError(
                f"{KEY}: there is no {name!r}{did_you_mean(name, list(LOGGERS))}; there are {known}"
            )
        library = LOGGERS[name].library
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{KEY}: {name!r} needs the package {library}: pip install {library}")


def build_loggers(names: Sequence[str], output_dir: str, config: Mapping) -> list[TrackingWriter]:
    """The writers of ``LOGGERS``, which `LoggersHook` starts.

    Args:
        names: any of "wandb" and "mlflow".
        output_dir: of the training.
        config: of the training, nested dicts of plain values.
    """
    check_loggers(names)
    return [LOGGERS[name](output_dir, config) for name in dict.fromkeys(names)]


class LoggersHook(HookBase):
    """Starts the runs of some writers when the training begins. Before the `ResumeHook`."""

    def __init__(self, writers: Sequence[EventWriter]):
        self._writers = [writer for writer in writers if isinstance(writer, TrackingWriter)]

    def before_train(self):
        for writer in self._writers:
            writer.start(resumed=self.trainer.start_iter > 0)


def _flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + str(key), value
