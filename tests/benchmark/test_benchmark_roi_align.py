"""The benchmark of RoI pooling measures what it says, on small inputs. No time is asserted."""

import csv
from dataclasses import replace

import pytest
import torch

from mrcnn_ext.benchmark import roi_align as benchmark
from mrcnn_ext.benchmark.tables import Target, write_csv
from mrcnn_ext.ops.roi_align import MODES

IMAGE = (96, 128)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(**changes):
    return replace(benchmark.Case(rois=8, channels=4), **changes)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("mode", MODES)
def test_row_has_every_implementation_that_has_the_mode(direction, mode):
    row = benchmark.measure(small(direction=direction, mode=mode), 0.0, IMAGE)
    assert row["ours_ms"] > 0 and row["floor_ratio"] == pytest.approx(row["floor_ms"] / row["ours_ms"])
    assert ("torchvision_ms" in row) == (mode in ("avg", "pool"))
    assert row["difference"] <= benchmark.SAME["float32"]
    assert benchmark.line(row).startswith(f"{direction} NHWC float32 {mode}, 8 RoIs")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_types_are_laid_beside_torchvisions_float32(dtype):
    row = benchmark.measure(small(dtype=dtype), 0.0, IMAGE)
    assert row["torchvision_ms"] > 0 and 0 < row["difference"] <= benchmark.SAME[dtype]


def test_a_model_on_c4_has_one_map_and_its_own_bins():
    case = small(direction="backward", mode="pool", c4=True, bins=14)
    contest = benchmark.Contest(case, IMAGE)
    assert [tuple(x.shape) for x in contest.features] == [(1, 4, 6, 8)] and contest.grad.shape == (
        8,
        4,
        14,
        14,
    )
    row = benchmark.measure(case, 0.0, IMAGE)
    assert row["torchvision_ms"] > 0 and benchmark.line(row).startswith(str(case))
    assert str(case).endswith("C4, 14 x 14")


def test_unequal_results_are_not_timed(monkeypatch):
    monkeypatch.setattr(benchmark.Contest, "difference", lambda self: float("nan"))
    with pytest.raises(AssertionError, match="results differ by nan"):
        benchmark.measure(small(), 0.0, IMAGE)


def test_boxes_lie_in_the_image_and_reach_every_level():
    boxes = benchmark.random_boxes(1000, benchmark.IMAGE, torch.Generator().manual_seed(0))
    assert (boxes[:, 1:] >= 0).all() and (boxes[:, 3] <= 1216).all() and (boxes[:, 4] <= 800).all()
    assert (boxes[:, 3:] > boxes[:, 1:3]).all()
    levels = benchmark.assign_levels(boxes, benchmark.SCALES, *benchmark.CANONICAL)
    assert levels.bincount().min() > 20


def test_target_is_met_on_the_right_side():
    assert Target("", "", 15.0, 15).met and not Target("", "", 14.9, 15).met
    assert Target("", "", 1.4, 1.5, at_least=False).met
    assert "MISSED" in str(Target("", "", 1.6, 1.5, at_least=False))


def test_csv_and_plot(tmp_path):
    cases = [small(), small(rois=4), small(sampling_ratio=2), small(mode="max"), small(direction="backward")]
    rows = [benchmark.measure(case, 0.0, IMAGE) for case in cases]
    write_csv(rows, tmp_path / "out.csv")
    benchmark.plot(rows, tmp_path / "out.png")
    with open(tmp_path / "out.csv") as file:
        read = list(csv.DictReader(file))
    assert [int(row["rois"]) for row in read] == [8, 4, 8, 8, 8]
    assert float(read[0]["ours_ms"]) == rows[0]["ours_ms"] and read[3]["torchvision_ms"] == ""
    assert (tmp_path / "out.png").stat().st_size > 10_000
