"""The benchmarks of mask encoding and keypoint decoding measure what they say. No time is asserted."""

import sys

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch

from mrcnn_ext.benchmark import keypoints, masks
from mrcnn_ext.benchmark.memory import peak_memory

pytestmark = pytest.mark.detectron2

IMAGE = (96, 128)


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_masks_row():
    row = masks.measure(4, IMAGE, 0.0)
    assert row["ours_ratio"] == pytest.approx(row["stock_ms"] / row["ours_ms"])
    assert masks.line(row).startswith("4, 96 x 128, 1 ")
    assert masks.target(row).wanted == 8


def test_unequal_masks_are_not_timed(monkeypatch):
    monkeypatch.setattr(masks, "masks_to_rle", lambda *_: [])
    with pytest.raises(AssertionError, match="ours, 4 masks, .*encodings differ"):
        masks.measure(4, IMAGE, 0.0)


def test_keypoints_rows_and_targets():
    rows = [keypoints.measure(2, 3, height, "cpu", 0.0) for height in (20, 40)]
    assert all(row["same_place"] > 0.5 and row["difference"] < 1e-3 for row in rows)
    assert keypoints.line(rows[1]).startswith("2 x 3, 40 px, cpu 1 ")
    ratio, growth = keypoints.targets(rows)
    assert ratio.measured == rows[1]["ratio"] and growth.measured >= 1


def test_wrong_keypoints_are_not_timed(monkeypatch):
    monkeypatch.setattr(keypoints, "heatmaps_to_keypoints", lambda maps, _: torch.zeros(*maps.shape[:2], 4))
    with pytest.raises(AssertionError, match="logits differ by"):
        keypoints.measure(2, 3, 20, "cpu", 0.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its peak")
def test_peak_memory_is_that_of_the_call():
    def touch():
        np.ones(64_000_000, np.uint8)

    assert [peak_memory(touch, torch.device("cpu")) / 64e6 for _ in range(2)] == pytest.approx(
        [1, 1], abs=0.1
    )
    assert peak_memory(lambda: None, torch.device("cpu")) < 5e6
