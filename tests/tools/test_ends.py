"""How programs end: by signals, full disks, losses that are not finite."""

import errno
import os
import re
import signal
import time

import pytest

pytest.importorskip("detectron2")

import torch

pytestmark = pytest.mark.detectron2

OPTIONS = ("VAL_LOSS.ENABLED", False, "DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 100000)
ENDLESS = ("SOLVER.MAX_ITER", 100000)


def last_line(log):
    return [line for line in log.splitlines() if "Warning" not in line and not line.startswith("  ")][-1]


def wait_for(process, text):
    deadline = time.monotonic() + 300
    while text not in process.log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number, processes",
    [
        (signal.SIGTERM, 1),
        (signal.SIGINT, 1),
        pytest.param(signal.SIGUSR1, 1, marks=pytest.mark.slow),
        (signal.SIGTERM, 2),
    ],
)
def test_a_signal_ends_a_training_with_a_checkpoint(start_here, configs, tmp_path, number, processes):
    flags = ("--num-gpus", 0, "--num-processes", processes) if processes > 1 else ()
    process = start_here(
        "train_net", "--config-file", configs.yaml, *flags, "OUTPUT_DIR", tmp_path, *OPTIONS, *ENDLESS
    )
    wait_for(process, "iter 20/")
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, process.log.read_text()
    log = process.log.read_text()
    assert "Traceback" not in log
    name = signal.Signals(number).name
    (iteration, file) = re.search(
        rf"{name}: stopped after iteration (\d+) and saved (\S+) in .*--resume", log
    ).groups()
    assert (tmp_path / "last_checkpoint").read_text() == file
    checkpoint = torch.load(tmp_path / file)
    assert (
        checkpoint["iteration"] == int(iteration) - 1 and len(checkpoint["state"]["processes"]) == processes
    )


@pytest.mark.slow
def test_torchrun_passes_signals_on(start, configs, tmp_path):
    arguments = ("--config-file", configs.yaml, "--num-gpus", 0, "OUTPUT_DIR", tmp_path, *OPTIONS, *ENDLESS)
    process = start("train_net", *arguments, torchrun=2)
    wait_for(process, "iter 20/")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) != 0
    assert "SIGTERM: stopped after iteration" in process.log.read_text()
    assert (tmp_path / "last_checkpoint").exists()


def test_a_loss_that_is_not_finite_is_one_message(run_here, configs, tmp_path):
    log = run_here("train_net", "--config-file", configs.yaml, "OUTPUT_DIR", tmp_path, *OPTIONS, "SOLVER.MAX_ITER", 20,
              "SOLVER.BASE_LR", 1e6, code=1)  # fmt: skip
    assert re.match(
        r"error: iteration \d+: (a (loss|gradient) is not finite|.* contain Inf/NaN.*) \(.*for .*\.png",
        last_line(log),
    )
    assert "Traceback" not in log and not list(tmp_path.glob("*.pth"))


def mount_small_disk(folder, megabytes):
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size={megabytes}m tmpfs {folder} 2>/dev/null") != 0:
        pytest.skip("a file system cannot be mounted here")


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 9 MB of room."""
    folder = tmp_path / "disk"
    mount_small_disk(folder, 9)
    yield folder
    os.system(f"umount {folder}")


def test_a_full_disk_in_training(run_here, configs, small_disk):
    folder = small_disk / "run"
    options = ("OUTPUT_DIR", folder, *OPTIONS, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 100)
    log = run_here("train_net", "--config-file", configs.yaml, *options, code=1)
    message = rf"error: the disk is full: {folder}/model_\d+.pth could not be written, and what was there"
    assert re.match(message, last_line(log)), log
    assert "Traceback" not in log
    last = folder / (folder / "last_checkpoint").read_text()
    assert torch.load(last)["iteration"] > 0 and not list(folder.glob("*.tmp"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize("suffix", ["pt2", pytest.param("ts", marks=SLOW), pytest.param("onnx", marks=SLOW)])
def test_a_full_disk_while_exporting(run_here, configs, small_disk, tmp_path, suffix):
    torch.manual_seed(0)
    from detectron2.modeling import build_model

    from mrcnn_ext.engine import load_config

    torch.save({"model": build_model(load_config(configs.yaml)).state_dict()}, tmp_path / "model.pth")
    (small_disk / "filled").write_bytes(bytes(9_370_000))
    output = small_disk / f"model.{suffix}"
    arguments = ("--config-file", configs.yaml, "--weights", tmp_path / "model.pth", "--output", output)
    log = run_here("export_model", *arguments, code=1)
    assert last_line(log).startswith(f"error: the disk is full: {output} could not be written"), log
    assert os.listdir(small_disk) == ["filled"]


def test_a_full_disk_in_prediction(run_here, configs, small_disk, tmp_path):
    from detectron2.modeling import build_model

    from mrcnn_ext.engine import load_config

    torch.manual_seed(0)
    torch.save({"model": build_model(load_config(configs.yaml)).state_dict()}, tmp_path / "model.pth")
    output = small_disk / "results.json"
    command = ["predict", "coco_2017_val_100", "--config-file", configs.yaml, "--device", "cpu"]
    command += ["--weights", tmp_path / "model.pth", "--output", output, "--min-score", 0.0]
    run_here(*command)
    before = output.read_bytes()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filled").write_bytes(bytes(free - 4096))
    log = run_here(*command, "--overwrite", code=1)
    assert re.match(
        rf"error: the disk is full: {small_disk}/results\.\S+ could not be written", last_line(log)
    ), log
    assert "Traceback" not in log and output.read_bytes() == before
    assert not list(small_disk.glob("*.tmp"))
    (small_disk / "filled").unlink()
    run_here(*command, "--overwrite")
    assert output.read_bytes() == before


def test_full_disks_of_any_kind_are_told(tmp_path):
    from mrcnn_ext.files import DiskFullError, replacing

    class FullFile:
        """A stand-in for a file on a full disk, as PyTorch's writer sees it."""

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(DiskFullError, match=f"^the disk is full: {path} could not be written"):
        with replacing(path):
            torch.save({"a": torch.zeros(1000)}, FullFile())
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["x"]
    with pytest.raises(PermissionError):
        with replacing(path):
            raise PermissionError
