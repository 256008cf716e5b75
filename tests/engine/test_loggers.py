"""Experiment trackers: what they get, by their own libraries where installed."""

import json
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("detectron2")

from detectron2.engine import TrainerBase, hooks
from detectron2.utils.events import get_event_storage
from omegaconf import OmegaConf

from mrcnn_ext.engine import UserError
from mrcnn_ext.engine.events import build_writers
from mrcnn_ext.engine.loggers import LoggersHook, TrackingWriter, build_loggers, check_loggers

CONFIG = {"SOLVER": {"BASE_LR": 0.02, "STEPS": [1, 2]}, "SEED": 3}


class Training(TrainerBase):
    def run_step(self):
        get_event_storage().put_scalars(total_loss=float(10 - self.iter), smoothing_hint=False)
        if self.iter == 1:
            nan = float("nan")
            get_event_storage().put_scalars(**{"bbox/AP": 40.0, "bbox/AP-a (b)": nan}, smoothing_hint=False)


def train(writers, start=0, end=4):
    trainer = Training()
    trainer.register_hooks([LoggersHook(writers), hooks.PeriodicWriter(writers, period=1)])
    trainer.train(start, end)


class Kept(TrackingWriter):
    name = "kept"

    def _begin(self, name, run_id):
        self.begun, self.rows, self._run = (name, run_id), [], object()
        return run_id or "id-1"

    def _log(self, scalars, iteration):
        self.rows.append((iteration, scalars))

    def _end(self):
        self.rows.append("end")


def test_every_scalar_once_at_its_iteration(tmp_path):
    writer = Kept(str(tmp_path / "run"), CONFIG)
    (tmp_path / "run").mkdir()
    train([writer])
    assert writer.begun == ("run", None)
    assert writer.rows == [
        (0, {"total_loss": 10.0}),
        (1, {"total_loss": 9.0, "bbox/AP": 40.0}),  # not what is no number
        (2, {"total_loss": 8.0}),
        (3, {"total_loss": 7.0}),
        "end",
    ]


def test_a_resumed_training_goes_on_with_its_run_and_another_does_not(tmp_path):
    train([Kept(str(tmp_path), CONFIG)], end=3)
    assert json.loads((tmp_path / "kept_run.json").read_text()) == {"id": "id-1"}
    resumed = Kept(str(tmp_path), CONFIG)
    resumed.resume_at(3)
    train([resumed], start=3)
    assert resumed.begun[1] == "id-1" and [row[0] for row in resumed.rows[:-1]] == [3]
    anew = Kept(str(tmp_path), CONFIG)
    train([anew])
    assert anew.begun[1] is None


def test_names_are_checked_before_training(monkeypatch):
    check_loggers([])
    with pytest.raises(
        UserError, match=r"LOGGERS \(train.loggers\): there is no 'wandv'; did you mean wandb\?"
    ):
        check_loggers(["wandv"])
    with pytest.raises(UserError, match=r'must be a list of names, \["wandb"\] say; got \'wandb\''):
        check_loggers("wandb")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="'mlflow' needs the package mlflow: pip install mlflow"):
        check_loggers(["mlflow"])


def test_both_configs_name_them():
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    from mrcnn_ext import add_mrcnn_ext_config
    from mrcnn_ext.engine.settings import check_lazy_settings, check_settings

    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "['any']", "LOGGERS", "['wandv']"])
    with pytest.raises(UserError, match="LOGGERS .* 'wandv'"):
        check_settings(cfg)
    lazy = OmegaConf.create({"train": model_zoo.get_config("common/train.py").train})
    lazy.train.device, lazy.train.loggers = "cpu", ["wandv"]
    with pytest.raises(UserError, match="train.loggers.* 'wandv'"):
        check_lazy_settings(lazy)


def test_a_library_that_refuses_is_named(tmp_path):
    class Refusing(Kept):
        def _begin(self, name, run_id):
            raise RuntimeError("no key\nlong text")

    with pytest.raises(UserError, match="'kept' does not begin a run: no key$"):
        Refusing(str(tmp_path), CONFIG).start(False)


def test_build_writers_adds_them(monkeypatch, tmp_path):
    monkeypatch.setattr("mrcnn_ext.engine.loggers.LOGGERS", {"kept": SimpleNamespace(library="json")})
    monkeypatch.setattr("mrcnn_ext.engine.loggers.LOGGERS", {"kept": Kept})
    monkeypatch.setattr(Kept, "library", "json")
    assert isinstance(build_writers(str(tmp_path), 3, ["kept"], CONFIG)[-1], Kept)
    assert not any(isinstance(w, TrackingWriter) for w in build_writers(str(tmp_path), 3))


def test_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    output = tmp_path / "street"
    output.mkdir()
    for start, end in ((0, 3), (3, 4)):  # the second is resumed
        (writer,) = build_loggers(["mlflow"], str(output), CONFIG)
        writer.resume_at(start)
        train([writer], start, end)
    client = mlflow.MlflowClient((tmp_path / "runs").as_uri())
    (run,) = client.search_runs(["0"])
    assert run.info.run_name == "street" and run.info.status == "FINISHED"
    assert run.data.params == {"SOLVER.BASE_LR": "0.02", "SOLVER.STEPS": "[1, 2]", "SEED": "3"}
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(0, 10), (1, 9), (2, 8), (3, 7)]
    assert run.data.metrics["bbox/AP"] == 40


def test_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    output = tmp_path / "street"
    output.mkdir()
    (writer,) = build_loggers(["wandb"], str(output), CONFIG)
    kept = {}
    end = writer._end

    def look():
        kept.update(name=writer._run.name, config=dict(writer._run.config), summary=dict(writer._run.summary))
        end()

    writer._end = look
    train([writer])
    assert kept["name"] == "street" and kept["config"]["SOLVER"]["BASE_LR"] == 0.02
    assert (
        kept["summary"]["total_loss"] == 7
        and kept["summary"]["bbox/AP"] == 40
        and kept["summary"]["iteration"] == 3
    )
    run_id = json.loads((output / "wandb_run.json").read_text())["id"]
    assert wandb.run is None and list((output / "wandb").glob(f"offline-run-*-{run_id}/*.wandb"))
