"""Rows of a detector beside its peers, each in a process of its own. No time is asserted."""

import csv

import pytest

pytest.importorskip("detectron2")

import torch
from click.testing import CliRunner

from mrcnn_ext.accel.cpu_features import int8_kernels_are_available
from mrcnn_ext.benchmark import peers
from mrcnn_ext.cli.benchmark import command
from mrcnn_ext.engine.errors import UserError

pytestmark = pytest.mark.detectron2


@pytest.fixture
def run(tiny_cfg, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg("MODEL.KEYPOINT_ON", "False").dump())

    def run(*arguments):
        sizes = ("--sizes", "64x96", "--instances", "5", "--rounds", "1", "--threads", "1")
        output = ("--output", str(tmp_path / "out"))
        return CliRunner().invoke(
            command, ["model", "--peers", "--config", str(config), *sizes, *output, *arguments]
        )

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.mark.skipif(not int8_kernels_are_available(), reason="the compiled operators are not built")
def test_rows_compare_in_processes_of_their_own(run, tmp_path):
    names = ["stock", *(["openvino"] if peers.missing(peers.PEERS["openvino"]) is None else []), "ours_int8"]
    ran = run("--only", ",".join(names))
    assert ran.exit_code == 0, ran.output
    assert "stock float32: ready" in ran.output and "ours int8: ready" in ran.output
    with open(tmp_path / "out" / "peers.csv") as file:
        rows = {row["peer"]: row for row in csv.DictReader(file)}
    assert list(rows) == names
    assert rows["stock"]["stock_ratio"] == "1.0" and float(rows["ours_int8"]["stock_ratio"]) > 0
    assert rows["ours_int8"]["precision"] == "int8" and rows["ours_int8"]["version"].startswith("mrcnn_ext")
    assert rows["stock"]["detections"] != "0" and (tmp_path / "out" / "peers.png").is_file()
    assert "stock float32 " in ran.output and "100% the same" in ran.output
    folder = tmp_path / "out" / "peers_tiny"
    if "openvino" in rows:
        assert float(rows["openvino"]["matched"]) == 1 and float(rows["openvino"]["box_px"]) < 0.05
        assert rows["openvino"]["version"].startswith("openvino 20")
        assert (folder / "float32.xml").is_file() and not (folder / "int8.xml").exists()
    # What was prepared is kept; a process that dies is named, with its log.
    (folder / "model.pth").write_bytes(b"")
    ran = run("--only", "ours")
    assert ran.exit_code == 1
    assert "the process of ours float32 ended with code 1: " in ran.output and "ours.log" in ran.output


def test_what_is_not_there_is_named(run, monkeypatch):
    ran = run("--only", "tensorrt")
    assert ran.exit_code == 2 and "'tensorrt' is not one of stock, compile, onnxruntime" in ran.output

    def absent(name):
        raise peers.PackageNotFoundError(name)

    monkeypatch.setattr(peers, "version", absent)
    why = {name: peers.missing(peer) for name, peer in peers.PEERS.items()}
    assert why["stock"] is None and why["ours"] is None
    assert why["openvino"] == why["onnxruntime"] == "onnx is not installed (pip install onnx)"
    monkeypatch.setattr(peers, "int8_kernels_are_available", lambda: False)
    assert "no int8 kernels" in peers.missing(peers.PEERS["ours_int8"])
    ran = run("--only", "openvino")
    assert isinstance(ran.exception, UserError) and "none of the peers can be measured here" in str(
        ran.exception
    )
    assert "left out: OpenVINO float32: onnx is not installed (pip install onnx)" in ran.output


def test_a_row_that_never_came_says_so(run, tmp_path, monkeypatch):
    class Process(peers.Process):
        def __init__(self, name, *args, **kwargs):
            if name == "ours":
                kwargs["limit"] = 0.2  # before it has imported torch
            super().__init__(name, *args, **kwargs)

    monkeypatch.setattr(peers, "Process", Process)
    ran = run("--only", "stock,ours")
    assert ran.exit_code == 0, ran.output
    with open(tmp_path / "out" / "peers.csv") as file:
        stock, ours = csv.DictReader(file)
    assert float(stock["ms"]) > 0 and not stock["why_not"] and not ours["ms"]
    assert ours["why_not"] == "the process of ours float32 was not ready within 0 s"
    assert f"none{'':25}{ours['why_not']}" in ran.output


@pytest.mark.skipif(not int8_kernels_are_available(), reason="the compiled operators are not built")
def test_throughput_of_workers(tiny_cfg, tmp_path):
    config, output = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(tiny_cfg("MODEL.KEYPOINT_ON", "False").dump())
    arguments = [
        "throughput",
        "--config",
        str(config),
        "--size",
        "64x96",
        "--instances",
        "5",
        "--rounds",
        "1",
    ]
    arguments += ["--threads", "2", "--images", "2", "--only", "ours", "--output", str(output)]
    ran = CliRunner().invoke(command, [*arguments, "--workers", "3"])
    assert ran.exit_code == 2 and "3 is not from 1 to the 2 threads that they share" in ran.output
    ran = CliRunner().invoke(command, [*arguments, "--workers", "1,2"])
    assert ran.exit_code == 0, ran.output
    with open(output / "throughput.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["workers"] for row in rows] == ["1", "2"] and "images/s" in ran.output
    # Two threads at once find what one does.
    assert all(float(row["images_per_s"]) > 0 and float(row["matched"]) == 1 for row in rows)
    assert rows[0]["detections"] == rows[1]["detections"] != "0"
