"""``mrcnn-ext train --slurm``: the same command in the processes of a SLURM job, by submitit."""

import os
import signal
import sys
from pathlib import Path

import click

from ..engine.errors import UserError, did_you_mean

__all__ = ["SlurmJob", "submit", "words_of"]

_LOGS = "output/slurm"
# Our keys -> submitit's parameters
_KEYS = {
    "nodes": "nodes",
    "gpus": "gpus_per_node",
    "processes": "tasks_per_node",
    "cpus": "cpus_per_task",
    "memory": "mem_gb",
    "minutes": "timeout_min",
    "name": "name",
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
}
_NUMBERS = ("nodes", "gpus", "processes", "cpus", "memory", "minutes")


class SlurmJob:
    """Runs a training in each process of a job, and goes on with it when the job is queued again.

    Args:
        words: of ``mrcnn-ext``.
    """

    def __init__(self, words: list[str]):
        self.words = words

    def __call__(self) -> None:
        import submitit

        from mrcnn_ext_command import command

        environment = submitit.helpers.TorchDistributedEnvironment()
        environment.export(set_cuda_visible_devices=False, overwrite=True)
        # By which a job that is queued again finds the checkpoint that it has left.
        job = submitit.JobEnvironment().job_id.replace("_", "-")
        os.environ["TORCHELASTIC_RUN_ID"] = f"slurm-{job}"
        os.environ["TORCHELASTIC_RESTART_COUNT"] = os.environ.get("SLURM_RESTART_COUNT", "0")
        # As submitit has it: SLURM sends it to what it cancels, too.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        queue_again = signal.getsignal(signal.SIGUSR2)
        try:
            command.main(self.words, standalone_mode=False)
        except SystemExit as stop:
            if stop.code != 128 + signal.SIGUSR2:
                raise RuntimeError(f"the training ended with exit code {stop.code}") from stop
            # The training has saved a checkpoint; the main process queues the job again.
            queue_again(signal.SIGUSR2, None)
            sys.exit(0)  # the others: without a result, which is yet to come

    def checkpoint(self):
        """What submitit is to run when the job is queued again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(words: list[str], text: str):
    """Submits a training.

    Args:
        words: of ``mrcnn-ext``.
        text: ``nodes=2,gpus=8,minutes=1440,partition=NAME``: see `_KEYS`; ``cluster=local`` runs it on this machine,
            ``logs=DIR`` is where submitit's files go.

    Returns:
        submitit.Job:

    Raises:
        UserError: submitit is not installed, there is no SLURM, or a key is wrong.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"--slurm needs submitit (pip install submitit): {error}") from error
    options = _parse(text)
    cluster, logs = options.pop("cluster", "slurm"), options.pop("logs", _LOGS)
    options.setdefault("nodes", 1)
    if "processes" not in options:
        options["processes"] = options.get("gpus") or 1
    try:
        executor = submitit.AutoExecutor(Path(logs) / "%j", cluster=cluster)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--slurm: {error}") from error
    is_slurm = cluster == "slurm"
    given = {_KEYS[key]: value for key, value in options.items()}
    executor.update_parameters(
        **{key: value for key, value in given.items() if is_slurm or not key.startswith("slurm_")}
    )
    return executor.submit(SlurmJob(words))


def _parse(text) -> dict:
    options: dict = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UserError(f"--slurm {part!r}: it must be KEY=VALUE,KEY=VALUE, nodes=2,gpus=8 say")
        if key not in (*_KEYS, "cluster", "logs"):
            known = [*_KEYS, "cluster", "logs"]
            raise UserError(
                f"--slurm: there is no {key!r}{did_you_mean(key, known)} (there is {', '.join(known)})"
            )
        if key in _NUMBERS and not value.isdigit():
            raise UserError(f"--slurm {part}: {key} must be a whole number")
        options[key] = int(value) if key in _NUMBERS else value
    return options


def words_of(ctx: click.Context, without: str) -> list[str]:
    """The command line of a command again, without one of its options."""
    options, arguments = [], []
    for parameter in ctx.command.params:
        value = ctx.params[parameter.name]
        source = ctx.get_parameter_source(parameter.name)
        if parameter.name == without or source is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            arguments += value
        elif parameter.is_flag:
            options.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            options += [parameter.opts[0], str(value)]
    return [ctx.info_name, *options, *arguments]
