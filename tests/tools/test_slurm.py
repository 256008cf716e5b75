"""train --slurm by submitit, on its local executor: a job that is preempted is queued again and goes on."""

import os
import re
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

pytest.importorskip("detectron2")
import torch

from mrcnn_ext.cli import slurm
from mrcnn_ext.cli.train import command
from mrcnn_ext.engine import UserError


def is_task(path, logs):
    try:
        command = (path / "cmdline").read_text()
    except OSError:
        return False
    return "submitit.core._submit" in command and str(logs) in command


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="could not import 'submitit'")
def test_a_preempted_job_goes_on(configs, environment, tmp_path, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    folder = tmp_path / "results"
    options = ("SOLVER.MAX_ITER", "100", "SOLVER.CHECKPOINT_PERIOD", "100000", "VAL_LOSS.ENABLED", "False")
    words = ["train", "--config-file", str(configs.yaml), "--output", str(folder), *options]
    job = slurm.submit(words, f"cluster=local,processes=2,minutes=10,logs={tmp_path / 'logs'}")

    def log():
        files = [Path(str(job.paths.stdout)), Path(str(job.paths.stderr))]
        return "".join(file.read_text() for file in files if file.exists())

    deadline = time.monotonic() + 150
    while "Starting training from iteration 0" not in log():
        assert not job.done() and time.monotonic() < deadline, log()
        time.sleep(0.1)
    # submitit's Job._interrupt ends its local controller instead of reaching the processes.
    tasks = [path for path in Path("/proc").glob("[0-9]*") if is_task(path, tmp_path / "logs")]
    assert len(tasks) == 2
    for path in tasks:
        os.kill(int(path.name), signal.SIGUSR2)
    while not job.done() and time.monotonic() < deadline:
        time.sleep(0.2)
    job.results()
    saved = re.search(r"SIGUSR2: stopped after iteration (\d+) and saved model_\d+.pth", log())
    assert f"Starting training from iteration {saved[1]}" in log()
    assert torch.load(folder / "model_final.pth")["iteration"] == 99


@pytest.mark.parametrize(
    "text, message",
    [
        ("nodes", "--slurm 'nodes': it must be KEY=VALUE"),
        ("node=2", "there is no 'node'.* did you mean nodes"),
        ("gpus=many", "--slurm gpus=many: gpus must be a whole number"),
        ("gpus=1", '--slurm: Could not detect "slurm"|--slurm: .*slurm'),
    ],
)
@pytest.mark.skipif(find_spec("submitit") is None, reason="could not import 'submitit'")
def test_what_is_wrong(text, message):
    with pytest.raises(UserError, match=message):
        slurm.submit(["train"], text)


def test_the_command_line_again():
    words = [
        "model=x",
        "data=y",
        "SOLVER.BASE_LR",
        "-0.1",
        "--slurm",
        "gpus=8",
        "--no-view",
        "--output",
        "a b",
    ]
    context = click.Context(command, info_name="train", ignore_unknown_options=True)
    command.parse_args(context, list(words))
    again = slurm.words_of(context, without="slurm")
    assert again == ["train", "--output", "a b", "--no-view", "model=x", "data=y", "SOLVER.BASE_LR", "-0.1"]
