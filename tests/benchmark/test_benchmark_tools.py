"""The programs of tools/ run from the command line to their files."""

import runpy
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch

from mrcnn_ext.benchmark import convolutions, masks
from mrcnn_ext.ops.winograd import winograd_is_available

pytestmark = pytest.mark.detectron2

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a tool with one thread; returns what it printed and its folder of results."""
    threads = torch.get_num_threads()

    def run(name, *arguments):
        output = tmp_path / name
        monkeypatch.setattr("sys.argv", [name, "--budget", "0", "--output", str(output), *arguments])
        try:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code in (0, 1)  # targets met, or missed
        return capsys.readouterr().out, output

    yield run
    torch.set_num_threads(threads)


def test_masks(run, monkeypatch):
    monkeypatch.setattr(masks, "IMAGES", ((96, 128),))
    printed, output = run("benchmark_masks", "--instances", "3", "--threads", "1")
    assert "3, 96 x 128, 1" in printed and ">= 8x" in printed
    assert (output / "masks.csv").is_file()


def test_keypoints(run):
    sizes = ("--instances", "2", "--keypoints", "3", "--heights", "20,40", "--threads", "1")
    printed, output = run("benchmark_keypoints", "--device", "cpu", *sizes)
    assert "2 x 3, 20 px" in printed and "2 x 3, 40 px" in printed and ">= 50x" in printed
    assert (output / "keypoints.csv").is_file()


@pytest.mark.skipif(not winograd_is_available(), reason="the compiled operators are not built")
def test_convolutions(run, monkeypatch):
    monkeypatch.setitem(convolutions.LAYERS, "res2", (1, 16, 32, 9, 10, 3))
    printed, output = run("benchmark_convolutions", "--layers", "res2", "--threads", "1")
    assert "res2, 1x16x32x9x10, 1" in printed and "winograd int16" in printed
    assert (output / "convolutions.csv").is_file()
    monkeypatch.setattr(convolutions, "winograd_conv3x3", lambda x, weight, bias: torch.zeros(1, 32, 9, 10))
    with pytest.raises(AssertionError, match="res2, winograd float32: wrong by"):
        convolutions.measure("res2", convolutions.LAYERS["res2"], 0.0)
    row = convolutions.measure("last", (1, 16, 32, 9, 10, 1), 0.0)
    assert row["bf16_ms"] > 0 and row["winograd int16_ms"] is None
    assert (row["ours float32_ms"] is not None) == convolutions.float32_kernels_are_available()
    assert (row["ours int8_ms"] is not None) == convolutions.int8_kernels_are_available()
    assert convolutions.line(row).startswith("last, 1x16x32x9x10, 1")


def test_model(run):
    printed, output = run(
        "benchmark_model",
        *"--config quickstart.yaml --device cpu --threads 1 --quick --sizes 64x96 --instances 3 --bf16 off".split(),
        *"-- MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16".split(),
    )
    assert "Accelerated for inference" in printed and "100.0% of 3" in printed
    assert "training 64 x 96" in printed and "losses within" in printed
    assert (output / "model.csv").is_file() and (output / "model.png").is_file()
