"""TEST.REPORT and train.report: a page after each evaluation by our evaluator."""

import json
import logging

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import LazyCall as L
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluators, LVISEvaluator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf
from PIL import Image

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.data import register_coco_format
from mrcnn_ext.engine import Trainer, lazy
from mrcnn_ext.engine.reporting import write_reports
from mrcnn_ext.evaluation import COCOEvaluator

NAME = "reported_pets"


@pytest.fixture
def dataset(tmp_path):
    content = {
        "images": [{"id": 4, "file_name": "a.png", "width": 60, "height": 40}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "bbox": [5, 5, 20, 20], "area": 400, "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 3, "bbox": [35, 5, 20, 20], "area": 400, "iscrowd": 0},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(tmp_path / "a.png")
    register_coco_format(NAME, str(tmp_path / "truth.json"), str(tmp_path))
    yield tmp_path
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def evaluate(evaluator):
    """One dog found, one cat missed."""
    instances = Instances((40, 60))
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 25, 25]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([1])
    evaluator.reset()
    evaluator.process([{"image_id": 4}], [{"instances": instances}])
    return evaluator.evaluate()


def test_a_report_of_every_evaluator_of_ours(dataset, caplog):
    evaluator = COCOEvaluator(NAME, tasks=("bbox",))
    results = evaluate(evaluator)
    (dataset / "metrics.json").write_text('{"iteration": 19, "total_loss": 3.0, "bbox/AP": 12.0}\n')
    with EventStorage(39) as storage, caplog.at_level(logging.INFO):
        storage.put_scalar("total_loss", 2.0)
        (path,) = write_reports([DatasetEvaluators([evaluator])], str(dataset), results)
    text = (dataset / f"report_{NAME}.html").read_text()
    assert path == str(dataset / f"report_{NAME}.html") and f"Report: {path}" in caplog.text
    assert "at iteration 39" in text and 'id="training"' in text and "image/jpeg" in text
    assert "evaluation, per image, with reading it" in text
    write_reports([evaluator], str(dataset), results)  # not in a training: nothing of one is shown
    assert 'id="training"' not in (dataset / f"report_{NAME}.html").read_text()


def test_other_evaluators_have_none(dataset, caplog):
    assert write_reports([LVISEvaluator.__new__(LVISEvaluator)], str(dataset), {}) == []
    assert "no data set was evaluated in COCO's format" in caplog.text


def test_a_report_that_fails_ends_nothing(dataset, caplog):
    evaluator = COCOEvaluator(NAME, tasks=("bbox",))
    results = evaluate(evaluator)
    assert write_reports([evaluator], str(dataset / "nowhere"), results) == []
    assert "could not be written" in caplog.text and "FileNotFoundError" in caplog.text


@pytest.mark.parametrize("wanted", [False, True])
def test_yaml(dataset, monkeypatch, wanted):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    assert cfg.TEST.REPORT is False
    cfg.TEST.REPORT, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = wanted, (NAME,), str(dataset / "out")
    (dataset / "out").mkdir()

    def test(cls, cfg, model, evaluators):
        return evaluate(evaluators[0] if evaluators else cls.build_evaluator(cfg, NAME))

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(test))
    cfg.TEST.TABLES = wanted
    results = Trainer.test(cfg, torch.nn.Identity())
    assert results["bbox"]["AP"] == pytest.approx(50)
    for suffix in ("csv", "md", "png"):
        assert (dataset / "out" / "inference" / NAME / f"results.{suffix}").is_file() == wanted
    assert (dataset / "out" / f"report_{NAME}.html").is_file() == wanted


@pytest.mark.parametrize("wanted", [False, True])
def test_lazy_config(dataset, monkeypatch, wanted):
    cfg = OmegaConf.create(
        {"train": {"output_dir": str(dataset)}, "dataloader": {"test": None}}, flags={"allow_objects": True}
    )
    cfg.dataloader.evaluator = L(COCOEvaluator)(dataset_name=NAME, tasks=("bbox",))
    if wanted:
        cfg.train.report = True
    else:
        cfg.train.tables = False
    monkeypatch.setattr(lazy, "inference_on_dataset", lambda model, loader, evaluator: evaluate(evaluator))
    assert lazy.do_test(cfg, None)["bbox"]["AP"] == pytest.approx(50)
    assert (dataset / f"report_{NAME}.html").is_file() == wanted
    assert (dataset / "inference" / "test" / "results.csv").is_file() == wanted
