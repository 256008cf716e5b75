"""The trainer's constructor; tests/tools trains with it."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluators, LVISEvaluator
from detectron2.modeling import build_model

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.engine import Trainer, UserError
from mrcnn_ext.engine import trainer as trainer_module
from mrcnn_ext.engine.setup import complete
from mrcnn_ext.engine.trainer import accelerated, accelerated_for_training, thin_out
from mrcnn_ext.evaluation import COCOEvaluator

pytestmark = pytest.mark.detectron2


def test_config_without_our_keys_means_their_defaults():
    plain = get_cfg()
    cfg = complete(plain)
    assert cfg.VAL_LOSS.ENABLED and cfg.is_frozen() and "VAL_LOSS" not in plain


@pytest.mark.parametrize(
    "count, expected", [(0, [0, 1, 2, 3, 4, 5]), (2, [0, 3]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])]
)
def test_validation_images_are_spread_over_the_data(count, expected):
    assert thin_out(list(range(6)), count) == expected


@pytest.fixture
def small_model():
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64"),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.RPN.IN_FEATURES", "['p5']"),
            *("MODEL.FPN.IN_FEATURES", "['res5']", "MODEL.RESNETS.OUT_FEATURES", "['res5']"),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['p5']"),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
        ]
    )
    return cfg, build_model(cfg)


@pytest.mark.parametrize("enabled", [False, True])
def test_an_accelerated_copy_is_evaluated_where_asked_for(small_model, monkeypatch, enabled):
    cfg, model = small_model
    cfg.MODEL.ACCELERATE = enabled
    cfg.DATASETS.TEST = ("trainer_test",)
    ours = COCOEvaluator.__new__(COCOEvaluator)  # of a dataset that is not there
    monkeypatch.setattr(Trainer, "build_evaluator", classmethod(lambda *args: ours))
    evaluated, evaluators = [], []

    def evaluate(cls, cfg, model, given):
        evaluated.append(model)
        evaluators.append(given or [None])
        return {}

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(evaluate))
    Trainer.test(cfg, model.train())
    Trainer.test_with_augmentation(cfg, model)
    (evaluator,) = evaluators.pop(0)
    if enabled:
        assert isinstance(evaluator, COCOEvaluator) and evaluated[0].inference.masks == "lazy"
        assert evaluated[1].model.inference.masks != "lazy"  # augmentation merges pixels
        assert accelerated(model).inference.masks != "lazy"
        others = LVISEvaluator.__new__(LVISEvaluator)
        assert accelerated(model, [evaluator, others]).inference.masks != "lazy"
        assert accelerated(model, [DatasetEvaluators([evaluator, evaluator])]).inference.masks == "lazy"
        assert evaluated[0] is not model and evaluated[0].acceleration.form == "inference"
        assert evaluated[1].model.acceleration.form == "inference"
        assert model.training and not hasattr(model, "acceleration")
    else:
        assert evaluated[0] is model and evaluated[1].model is model


def test_int8_is_calibrated_with_a_dataset_or_a_file(small_model, monkeypatch, tmp_path):
    cfg, model = small_model
    cfg.MODEL.ACCELERATE = True
    given = []
    monkeypatch.setattr(
        trainer_module, "accelerated", lambda model, evaluators=(), int8=None: given.append(int8)
    )
    monkeypatch.setattr(DefaultTrainer, "test", classmethod(lambda *args: {}))
    monkeypatch.setattr(Trainer, "build_evaluator", classmethod(lambda *args: None))
    loader = classmethod(lambda cls, cfg, name: [f"{name} {i}" for i in range(20)])
    monkeypatch.setattr(Trainer, "build_test_loader", loader)
    monkeypatch.setattr(DatasetCatalog, "list", lambda: ["int8_test"])
    (tmp_path / "int8.json").write_text("{}")
    for value in ("", "int8_test", str(tmp_path / "int8.json")):
        cfg.MODEL.ACCELERATE_INT8 = value
        Trainer.test(cfg, model)
    assert given == [None, [f"int8_test {i}" for i in range(16)], str(tmp_path / "int8.json")]
    cfg.MODEL.ACCELERATE_INT8 = "nothing"
    with pytest.raises(
        UserError, match=r"ACCELERATE_INT8 \(.*'nothing' is neither the file .* nor a registered"
    ):
        Trainer.test(cfg, model)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"MODEL.ACCELERATE_INT8 \(train.accelerate_int8\): "):
        accelerated(model, int8=str(tmp_path / "int8.json"))


@pytest.mark.parametrize("enabled", [False, True])
def test_a_model_is_accelerated_for_training_where_asked_for(small_model, enabled):
    cfg, _ = small_model
    cfg.MODEL.ACCELERATE_TRAINING = enabled
    model = Trainer.build_model(cfg)
    assert hasattr(model, "acceleration") == enabled
    if enabled:
        assert model.acceleration.form == "training"
        assert accelerated(model).acceleration.form == "inference" and model.acceleration.form == "training"


def test_what_cannot_be_accelerated_is_named():
    with pytest.raises(UserError, match=r"MODEL.ACCELERATE \(train.accelerate\): .* got Linear"):
        accelerated(torch.nn.Linear(1, 1))
    with pytest.raises(
        UserError, match=r"MODEL.ACCELERATE_TRAINING \(train.accelerate_training\): .* got Linear"
    ):
        accelerated_for_training(torch.nn.Linear(1, 1))
