"""A worker of torchrun that is lost: the training goes on from the last checkpoint and ends as an undisturbed one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch

ROOT = Path(__file__).parents[2]
ITERATIONS = 20
YAML = f"SOLVER.CHECKPOINT_PERIOD 3 SOLVER.MAX_ITER {ITERATIONS} VAL_LOSS.ENABLED False OUTPUT_DIR".split()
LAZY = f"train.checkpointer.period=3 train.max_iter={ITERATIONS} +train.val_loss.enabled=false".split()


def workers_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["yaml", "lazy"])
def test_a_killed_worker_of_torchrun(
    kind, start_here, datasets, configs, environment, tmp_path, read_metrics
):
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "disturbed"
    config = ("--config-file", str(getattr(configs, kind)))
    if kind == "yaml":
        tool, program = "train_net", ["-m", "mrcnn_ext", "train"]
        options = {out: [*YAML, str(out)] for out in (undisturbed, folder)}
    else:
        tool, program = "lazyconfig_train_net", [str(ROOT / "tools" / "lazyconfig_train_net.py")]
        options = {out: [*LAZY, f"train.output_dir={out}"] for out in (undisturbed, folder)}
    share = ("--num-gpus", 0, "--num-processes", 2)
    expected = start_here(tool, *config, *share, *options[undisturbed], datasets=datasets)

    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        command = [sys.executable, *launcher, *program, *config, *options[folder]]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    deadline = time.monotonic() + 150
    while not list(folder.glob("model_*.pth")):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)
    workers = workers_of(process)
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(150) == 0, log.read_text()[-3000:]
    started = re.findall(r"Starting training from iteration (\d+)", log.read_text())
    assert len(started) == 2 and started[0] == "0" and 0 < int(started[1]) < ITERATIONS, started
    assert re.search(r"Started again by torchrun: resuming from model_\d+.pth", log.read_text())

    expected.process.join(150)
    assert expected.process.exitcode == 0, expected.log.read_text()[-3000:]
    found, wanted = (torch.load(out / "model_final.pth") for out in (folder, undisturbed))
    assert found["iteration"] == wanted["iteration"] == ITERATIONS - 1
    for key, value in wanted["model"].items():
        assert torch.equal(found["model"][key], value), key
    losses = [
        {name: v for name, (_, v) in c["state"]["scalars"].items() if "loss" in name} for c in (found, wanted)
    ]
    assert losses[0] == losses[1] and "total_loss" in losses[0]
