"""Which checkpoint a training that torchrun starts again goes on from."""

import os

import pytest

pytest.importorskip("detectron2")

from mrcnn_ext.engine.elastic import goes_on


def test_only_from_a_checkpoint_of_this_torchrun(tmp_path, monkeypatch):
    last, clock = tmp_path / "last_checkpoint", iter(range(1, 100))

    def saved(name="model_0000001.pth"):
        last.write_text(name)
        os.utime(last, (time := next(clock), time))

    def started(job, restarts=0):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", job)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        return goes_on(str(tmp_path))

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    saved()
    assert not goes_on(str(tmp_path)) and not (tmp_path / "torchrun.json").exists()
    assert not started("a")  # what is there is another training's
    assert not started("a", restarts=1)  # and still is, where this one has saved nothing
    saved()
    assert started("a", restarts=2)
    assert started("a")  # another machine's first start, or after machines have come or gone
    assert not started("b") and not started("b")
    saved("model_final.pth")
    assert started("b", restarts=1)  # lost in the last evaluation
    assert not started("b")  # a new training of the same name
    # torchrun without a name
    assert not started("none")
    saved()
    assert started("none", restarts=1)
    assert not started("none")
