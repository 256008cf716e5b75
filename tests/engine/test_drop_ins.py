"""Trainer and Predictor in the place of detectron2's, and what detectron2's say of our keys."""

import json
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("detectron2")

import cv2
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator

from mrcnn_ext.engine import Predictor, Trainer, UserError, settings
from mrcnn_ext.engine import predictor as predictor_module
from mrcnn_ext.inference import load_predictor

pytestmark = pytest.mark.detectron2

NAME = "drop_in_test"


@pytest.fixture
def coco_format(tmp_path):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "1.png"), rng.integers(0, 255, (64, 80, 3), dtype=np.uint8))
    box = {"bbox": [4, 4, 40, 50], "area": 2000, "iscrowd": 0, "segmentation": [[4, 4, 44, 4, 44, 54, 4, 54]]}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cod", "eel", "ray"), 1)],
    }
    (tmp_path / "fish.json").write_text(json.dumps(content))
    yield [NAME, str(tmp_path / "fish.json"), str(tmp_path)]
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def make_cfg(tiny_cfg, coco_format, tmp_path):
    def make(*opts):
        cfg = tiny_cfg(
            *("MODEL.KEYPOINT_ON", False, "MODEL.WEIGHTS", "", "INPUT.MIN_SIZE_TRAIN", (64,)),
            *("INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1),
            *("SOLVER.MAX_ITER", 2, "OUTPUT_DIR", str(tmp_path / "out")),
            *("DATASETS.COCO_FORMAT", [coco_format], "DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)),
            *opts,
        )
        return cfg

    return make


def test_the_trainer_heeds_our_keys(make_cfg):
    cfg = make_cfg("SOLVER.OPTIMIZER", "AdamW", "MODEL.ACCELERATE_TRAINING", True, "SOLVER.EMA_DECAY", 0.9)
    cfg.MODEL.ACCELERATE = True
    trainer = Trainer(cfg)  # which registers the dataset
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.model.acceleration.form == "training"
    assert {"val/total_loss", "bbox/AP"} <= set(trainer.storage.latest())
    checkpoint = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert "averaged_model" in checkpoint
    assert checkpoint["about"]["metadata"]["thing_classes"] == ["cod", "eel", "ray"]

    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    cfg.DATASETS.TEST = ()
    predictor = Predictor(cfg)
    assert predictor.model.acceleration is not None and not predictor.model.training
    assert predictor.metadata.thing_classes == ["cod", "eel", "ray"]
    weight = predictor.model.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    torch.testing.assert_close(
        weight, checkpoint["averaged_model"]["roi_heads.box_predictor.cls_score.weight"]
    )


def test_the_predictor_predicts_as_detectron2s(make_cfg, tmp_path):
    cfg = make_cfg("INPUT.FORMAT", "RGB", "TEST.DETECTIONS_PER_IMAGE", 5)
    model = Trainer.build_model(cfg)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    image = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = DefaultPredictor(cfg)
    ours = Predictor(cfg)
    expected, found = stock(image)["instances"], ours(image)["instances"]
    assert len(found) == len(expected) == 5 and found.image_size == (50, 90)
    for field in ("pred_boxes", "scores", "pred_classes", "pred_masks"):
        a, b = (getattr(x.get(field), "tensor", x.get(field)) for x in (expected, found))
        torch.testing.assert_close(a, b)
    assert (ours.input_format, vars(ours.aug)["max_size"]) == (
        stock.input_format,
        vars(stock.aug)["max_size"],
    )


def test_the_predictor_refuses_weights_of_another_model(make_cfg, tmp_path):
    cfg = make_cfg()
    torch.save({"model": torch.nn.Linear(3, 4).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    with pytest.raises(UserError, match="checkpoint of another architecture"):
        Predictor(cfg)
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(UserError, match="INPUT.FORMAT must be 'RGB' or 'BGR' for a Predictor"):
        Predictor(cfg)


class Evaluator(DatasetEvaluator):
    def evaluate(self):
        return {"mine": {"score": 42.0}}


class AtEveryStep(HookBase):
    def after_step(self):
        self.trainer.storage.put_scalar("from_hook", self.trainer.iter)


class ScriptTrainer(Trainer):
    """What scripts override."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return Evaluator()

    @classmethod
    def build_train_loader(cls, cfg):
        loader = build_detection_train_loader(cfg)
        return (batch for batch in loader)

    def build_hooks(self):
        hooks = super().build_hooks()
        hooks.insert(-1, AtEveryStep())
        return hooks


def test_what_scripts_override_is_used(coco_format, tmp_path):
    """With a config that has none of our keys, and a dataset that the script registers."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [*"MODEL.DEVICE cpu MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64".split()]
    )
    cfg.merge_from_list(["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.PIXEL_STD", [57.0, 57.0, 58.0]])
    cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8])
    cfg.merge_from_list(
        ["MODEL.RPN.POST_NMS_TOPK_TEST", 10, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64]
    )
    cfg.merge_from_list(["SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "OUTPUT_DIR", str(tmp_path)])
    from detectron2.data.datasets import register_coco_instances

    register_coco_instances(NAME, {}, *coco_format[1:])
    trainer = ScriptTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer._last_eval_results == {"mine": {"score": 42.0}}
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # Of the hook's 0 and 1 the writers, which come after it, write the median.
    assert [row["from_hook"] for row in rows if "from_hook" in row] == [0.5]
    assert ScriptTrainer.test(cfg, trainer.model) == {"mine": {"score": 42.0}}


def test_the_data_are_checked_before_training(make_cfg):
    with pytest.raises(UserError, match=r"MODEL.ROI_HEADS.NUM_CLASSES"):
        Trainer(make_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2))


def test_without_a_gpu_the_cpu_is_taken_with_one_warning(make_cfg, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings._warn_of_cpu.cache_clear()
    cfg = make_cfg(
        "MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1, "VAL_LOSS.ENABLED", False
    )
    cfg.DATASETS.TEST = ()
    trainer = Trainer(cfg)
    trainer.train()
    cfg.MODEL.WEIGHTS = f"{cfg.OUTPUT_DIR}/model_final.pth"
    Predictor(cfg)(np.zeros((50, 90, 3), np.uint8))
    assert load_predictor(cfg).model.device.type == "cpu"
    told = [record.getMessage() for record in caplog.records if "Running on the CPU" in record.getMessage()]
    assert len(told) == 1 and "no GPU, although MODEL.DEVICE is 'cuda'" in told[0]
    assert cfg.MODEL.DEVICE == "cuda", "the script's own config was changed"


def test_a_trainer_without_training_data_says_so(make_cfg):
    with pytest.raises(UserError, match="DATASETS.TRAIN is empty: name the datasets"):
        Trainer(make_cfg("DATASETS.TRAIN", ()))


def warned(make):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Exception):  # noqa: B017  (they stop at the data or the weights that there are not)
            make()
    return [str(w.message) for w in caught if "does not heed" in str(w.message)]


def test_detectron2s_own_warn_of_keys_that_they_do_not_heed(make_cfg):
    cfg = make_cfg(
        "MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.TIMM.NAME", "resnet34", "MODEL.WEIGHTS", "none.pth"
    )
    cfg.DATASETS.TRAIN = ("none",)
    cfg.DATASETS.COCO_FORMAT = []
    assert warned(lambda: DefaultTrainer(cfg)) == []  # of components
    assert warned(lambda: DefaultPredictor(cfg)) == []
    cfg.merge_from_list(["MODEL.ACCELERATE", True, "SOLVER.OPTIMIZER", "AdamW", "SOLVER.PATIENCE", 3])
    (message,) = warned(lambda: DefaultTrainer(cfg))
    assert re.search(
        r"DefaultTrainer does not heed MODEL.ACCELERATE, SOLVER.OPTIMIZER, SOLVER.PATIENCE: .*Trainer",
        message,
    )
    (message,) = warned(lambda: DefaultPredictor(cfg))
    assert "DefaultPredictor does not heed MODEL.ACCELERATE: mrcnn_ext.engine.Predictor" in message

    class Own(DefaultTrainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            return torch.optim.AdamW(model.parameters())

    (message,) = warned(lambda: Own(cfg))
    assert "SOLVER.OPTIMIZER" not in message and "SOLVER.PATIENCE" in message
    assert warned(lambda: Trainer(cfg)) == [] and warned(lambda: ScriptTrainer(cfg)) == []
    assert warned(lambda: Predictor(cfg)) == []
    cfg.DATASETS.COCO_FORMAT = [["x", "x.json", "."]]
    assert any("DATASETS.COCO_FORMAT" in message for message in warned(lambda: DefaultPredictor(cfg)))


def test_the_predictor_calibrates_int8_as_the_config_says(make_cfg, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(predictor_module, "accelerated", lambda model, int8=None: given.append(int8))
    cfg = make_cfg("MODEL.ACCELERATE", True)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    (tmp_path / "int8.json").write_text("{}")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    for value in ("", str(tmp_path / "int8.json")):
        cfg.MODEL.ACCELERATE_INT8 = value
        Predictor(cfg)
    assert given == [None, str(tmp_path / "int8.json")]
    cfg.MODEL.ACCELERATE_INT8 = "nothing"
    with pytest.raises(UserError, match="'nothing' is neither the file of a calibration nor a registered"):
        Predictor(cfg)
