"""Trainings that are killed and resumed end as one that was never killed, to the bit."""

import os
import random
import re
import signal
import time
from functools import partial

import pytest

pytest.importorskip("detectron2")

import torch

pytestmark = pytest.mark.detectron2


@pytest.fixture
def start_here(start_here, mixed_datasets):
    return partial(start_here, datasets=mixed_datasets)


def arguments_of(tool, configs, folder, num_processes, max_iter):
    workers = 2 if num_processes == 1 else 0
    evaluation = 3 if num_processes == 1 else 7
    if tool == "train_net":
        options = (
            *(
                "OUTPUT_DIR",
                folder,
                "SOLVER.MAX_ITER",
                max_iter,
                "SOLVER.CHECKPOINT_PERIOD",
                2,
                "CHECKPOINT.KEEP",
                2,
            ),
            *(
                "DATALOADER.NUM_WORKERS",
                workers,
                "TEST.EVAL_PERIOD",
                evaluation,
                "CHECKPOINT.BEST",
                "val/total_loss",
            ),
            *("SOLVER.EMA_DECAY", 0.9, "INPUT.CROP.ENABLED", True),
        )
        config = configs.yaml
    else:
        options = (
            *(f"train.output_dir={folder}", f"train.max_iter={max_iter}", "train.checkpointer.period=2"),
            *(
                "train.checkpointer.max_to_keep=2",
                f"dataloader.train.num_workers={workers}",
                f"train.eval_period={evaluation}",
            ),
            *("+train.checkpointer.best=val/total_loss", "+train.ema_decay=0.9", "train.log_period=2"),
        )
        config = configs.lazy
    processes = ("--num-gpus", 0, "--num-processes", num_processes) if num_processes > 1 else ()
    return ("--config-file", config, *processes, *options)


def wait(run, timeout=200):
    run.process.join(timeout)
    assert run.process.exitcode == 0, (run.process.exitcode, run.log.read_text()[-3000:])


def last_saved(folder):
    """The iteration after which a training last wrote a checkpoint; -1 before the first."""
    last = folder / "last_checkpoint"
    number = re.search(r"model_(\d+)", last.read_text() if last.exists() else "")
    return int(number[1]) if number else -1


def kill(run, folder, rng, max_iter, while_writing):
    """Kills a training and all its processes, up to six iterations and a checkpoint further on.

    Args:
        while_writing: as soon as it writes a checkpoint there; otherwise, up to a second later than one.

    Returns:
        bool: whether it was still running.
    """
    deadline = time.monotonic() + 200
    while "Starting training" not in (run.log.read_text() if run.log.exists() else ""):
        assert run.process.is_alive() and time.monotonic() < deadline, run.log.read_text()[-3000:]
        time.sleep(0.02)
    target = min(last_saved(folder) + rng.randrange(6), max_iter - 1)
    while run.process.is_alive() and last_saved(folder) < target:
        time.sleep(0.005)
    if while_writing:
        while run.process.is_alive() and not list(folder.glob("model_*.tmp")):
            pass
    else:
        run.process.join(rng.uniform(0.0, 1.0))
    alive = run.process.is_alive()
    if alive:
        os.killpg(run.process.pid, signal.SIGKILL)
    run.process.join()
    return alive


def same(found, expected, where=""):
    """Paths of what differs between two nested values."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        return [path for key in expected for path in same(found[key], expected[key], f"{where}/{key}")]
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        pairs = enumerate(zip(found, expected, strict=True))
        return [path for i, (f, e) in pairs for path in same(f, e, f"{where}/{i}")]
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [where]
    return [] if found == expected else [where]


def assert_same_training(folder, expected, rows):
    found, wanted = (torch.load(f / "model_final.pth") for f in (folder, expected))
    for checkpoint in (found, wanted):  # but for the time that iterations took
        checkpoint.pop("about")  # holds the name of the folder
        scalars = checkpoint["state"].pop("scalars")
        checkpoint["losses"] = {k: v for k, v in scalars.items() if "loss" in k}
    assert {"model", "averaged_model", "trainer", "state"} <= found.keys()
    assert same(found, wanted) == []
    files = {path.name for path in folder.iterdir() if path.suffix == ".pth"}
    assert files == {path.name for path in expected.iterdir() if path.suffix == ".pth"}
    best = [torch.load(f / "model_best.pth") for f in (folder, expected)]
    assert same(best[0]["model"], best[1]["model"]) == [] and best[0]["iteration"] == best[1]["iteration"]
    rows = [[row for row in rows(f)] for f in (folder, expected)]
    assert [row["iteration"] for row in rows[0]] == [row["iteration"] for row in rows[1]]
    for ours, theirs in zip(*rows, strict=True):
        assert {k: v for k, v in ours.items() if "loss" in k} == {
            k: v for k, v in theirs.items() if "loss" in k
        }
    assert not list(folder.glob("*.tmp"))


def kills_and_resumes(
    start_here, configs, tmp_path, read_metrics, tool, num_processes, num_kills, max_iter, seed
):
    expected = tmp_path / "uninterrupted"
    wait(start_here(tool, *arguments_of(tool, configs, expected, num_processes, max_iter)))
    rng, killed, finished = random.Random(seed), [], 0
    while len(killed) < num_kills or not finished:
        folder = tmp_path / f"killed_{finished}"
        arguments = arguments_of(tool, configs, folder, num_processes, max_iter)
        resume = ("--resume",) if (folder / "last_checkpoint").exists() else ()
        run = start_here(tool, *resume, *arguments)
        if len(killed) == num_kills:
            wait(run)
        else:
            while_writing = len(killed) % 3 == 1
            if kill(run, folder, rng, max_iter, while_writing):
                killed.append((last_saved(folder), "writing" if while_writing else ""))
                continue
            wait(run)  # it had ended before
        assert_same_training(folder, expected, read_metrics)
        finished += 1
    print(
        f"{tool}, {num_processes} processes: {len(killed)} kills of trainings of {max_iter} iterations, "
        f"{finished} trainings compared; (last saved, doing): {killed}"
    )


def test_a_killed_training_goes_on_as_if_it_had_not_been(start_here, configs, tmp_path, read_metrics):
    kills_and_resumes(
        start_here, configs, tmp_path, read_metrics, "train_net", 1, num_kills=3, max_iter=10, seed=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("tool", ["train_net", "lazyconfig_train_net"])
def test_twenty_kills(start_here, configs, tmp_path, read_metrics, tool, num_processes):
    """In pieces: KILLS, and another KILL_SEED for each."""
    kills = int(os.environ.get("KILLS", 20 if num_processes == 1 else 6))
    seed = int(os.environ.get("KILL_SEED", 1))
    kills_and_resumes(
        start_here, configs, tmp_path, read_metrics, tool, num_processes, kills, max_iter=16, seed=seed
    )
