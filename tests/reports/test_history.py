import json

import pytest

from mrcnn_ext.reports import TrainingHistory

ROWS = [
    {"iteration": 19, "total_loss": 3.0, "loss_cls": 1.0, "time": 0.5},
    {"iteration": 39, "total_loss": 2.0, "loss_cls": float("nan"), "val/total_loss": 2.5},
    {"iteration": 39, "total_loss": 1.5, "a/bbox/AP": 10.0, "a/bbox/AP-cat": 9.0, "b/segm/AP": 20.0},
]


def test_values_by_name():
    history = TrainingHistory(ROWS)
    assert history.points("total_loss") == ([19, 39], [3.0, 1.5])  # the later row counts
    assert history.points("loss_cls") == ([19], [1.0])  # not what is no number
    assert history.points("nothing") == ([], [])
    assert history.losses == ["total_loss", "loss_cls"] and history.last_iteration == 39
    assert history.precisions("a") == {"bbox/AP": "a/bbox/AP", "bbox/AP-cat": "a/bbox/AP-cat"}
    assert history.precisions("c") == {} and history.datasets == ["a", "b"]
    assert TrainingHistory([{"iteration": 1, "segm/AP50": 3.0}]).precisions("c") == {"segm/AP50": "segm/AP50"}
    assert history and not TrainingHistory()


def test_files(tmp_path):
    path = tmp_path / "metrics.json"
    assert not TrainingHistory.read(path)
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]) + '{"iteration": 59, "tot')
    history = TrainingHistory.read(path, ROWS[2:])
    assert history.points("total_loss") == ([19, 39], [3.0, 1.5])
    path.write_text('{"AP": 3}\n{"iteration": 1}\n')
    with pytest.raises(ValueError, match="metrics.json, line 1: not a line of a metrics.json"):
        TrainingHistory.read(path)
