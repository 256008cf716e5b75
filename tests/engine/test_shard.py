"""FSDP of a Vision Transformer: block by block, and the training of DistributedDataParallel."""

import multiprocessing
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("detectron2")
pytest.importorskip("timm")

sys.path.insert(0, str(Path(__file__).parent))  # for shard_process

import shard_process

pytestmark = pytest.mark.detectron2


def test_the_blocks_of_a_vision_transformer(tmp_path):
    context = multiprocessing.get_context("forkserver")
    forkserver._forkserver._stop()  # another test's has imported something else
    context.set_forkserver_preload(["mrcnn_ext.engine.sharding", "mrcnn_ext.modeling"])
    queue = context.Queue()
    arguments = [(rank, tmp_path / "store", queue) for rank in (0, 1)]
    processes = [context.Process(target=shard_process.train_both, args=args) for args in arguments]
    for process in processes:
        process.start()
    answers = sorted((queue.get(timeout=100) for _ in processes), key=lambda answer: answer[0])
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    forkserver._forkserver._stop()
    for _, found, units in answers:
        assert units[0] == "" and len(units) == 1 + shard_process.DEPTH
        assert all(f"blocks.{k}" in unit for k, unit in enumerate(units[1:]))
        (losses, weights), (expected, wanted) = found["fsdp"], found["ddp"]
        assert losses == pytest.approx(expected, rel=1e-5)
        assert weights.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(weights[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert answers[0][1]["ddp"][0] != answers[1][1]["ddp"][0], "the processes have images of their own"
