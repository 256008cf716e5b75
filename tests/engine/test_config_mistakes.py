"""The list of config mistakes: each ends in one line that names the key and what would be right."""

import os

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import LazyCall
from omegaconf import OmegaConf

from mrcnn_ext.engine import Trainer, UserError, load_config
from mrcnn_ext.engine.lazy import _instantiate, load_lazy_config
from mrcnn_ext.engine.settings import building, check_lazy_settings, check_output_dir, check_settings

pytestmark = pytest.mark.detectron2

GOOD = ("MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('some',)")
MISTAKES = [
    (("MODEL.FPN.NORM", "BatchNorm"), r"MODEL.FPN.NORM must be one of .*'BN'.*; got 'BatchNorm'"),
    (("MODEL.RESNETS.NORM", "FrozenBn"), "got 'FrozenBn'; did you mean FrozenBN"),
    (
        ("INPUT.MASK_FORMAT", "polygons"),
        "INPUT.MASK_FORMAT must be one of 'polygon', .*; did you mean polygon",
    ),
    (("INPUT.FORMAT", "BRG"), "INPUT.FORMAT must be 'BGR', 'RGB' or a mode of PIL; got 'BRG'"),
    (("SOLVER.LR_SCHEDULER_NAME", "Cosine"), "SOLVER.LR_SCHEDULER_NAME must be one of .*WarmupCosineLR"),
    (("SOLVER.OPTIMIZER", "Adam"), "SOLVER.OPTIMIZER must be one of 'SGD', 'AdamW'; got 'Adam'"),
    (("DATASETS.TRAIN", "()"), "DATASETS.TRAIN is empty: name the datasets"),
    (("SOLVER.MAX_ITER", "-1"), "SOLVER.MAX_ITER must be at least 1, got -1"),
    (("SOLVER.IMS_PER_BATCH", "0"), "SOLVER.IMS_PER_BATCH must be at least 1, got 0"),
    (
        ("SOLVER.IMS_PER_BATCH", "6", "SOLVER.ACCUMULATE", "4"),
        "SOLVER.IMS_PER_BATCH is 6, of which .*ACCUMULATE",
    ),
    (("SOLVER.EMA_DECAY", "1.0"), r"SOLVER.EMA_DECAY must be in \[0, 1\).*got 1.0"),
    (("SOLVER.PATIENCE", "2"), "SOLVER.PATIENCE needs a metric, CHECKPOINT.BEST"),
    (("CHECKPOINT.KEEP", "-2"), "CHECKPOINT.KEEP must be at least 0, got -2"),
    (("DATALOADER.NUM_WORKERS", "-1"), "DATALOADER.NUM_WORKERS must be at least 0"),
    (("INPUT.CLIP.NUM_FRAMES", "0"), "INPUT.CLIP.NUM_FRAMES must be at least 1, got 0"),
    (("INPUT.CLIP.STRIDE", "0"), "INPUT.CLIP.STRIDE must be at least 1, got 0"),
    (("MODEL.DEVICE", "quantum"), "MODEL.DEVICE must be a device of PyTorch's.*'quantum'"),
]


@pytest.mark.parametrize("opts, message", MISTAKES, ids=[f"{opts[-2]} {opts[-1]}" for opts, _ in MISTAKES])
def test_yaml(opts, message):
    with pytest.raises(UserError, match=message) as error:
        check_settings(load_config("", [*GOOD, *opts]))
    assert "\n" not in str(error.value)


def test_good_ones_pass():
    check_settings(load_config("", GOOD))
    check_settings(load_config("", [*GOOD, "MODEL.WEIGHTS", "x.pth"]), eval_only=True)
    check_settings(load_config("", GOOD), eval_only=True, resume=True)


def test_evaluation_needs_weights():
    with pytest.raises(UserError, match="--eval-only without weights .* give MODEL.WEIGHTS, or --resume"):
        check_settings(load_config("", GOOD), eval_only=True)
    cfg = OmegaConf.create({"train": {"device": "cpu", "init_checkpoint": ""}})
    with pytest.raises(UserError, match="give train.init_checkpoint, or --resume"):
        check_lazy_settings(cfg, eval_only=True)


@pytest.mark.parametrize("name", ["OUTPUT_DIR", "OUTPUT_DIR/below"])
def test_the_output_folder(tmp_path, name):
    (tmp_path / "OUTPUT_DIR").write_text("a file")
    with pytest.raises(UserError, match="OUTPUT_DIR: the folder .* cannot be made: "):
        check_output_dir("OUTPUT_DIR", os.fspath(tmp_path / name))


def test_a_batch_that_processes_cannot_share(monkeypatch):
    from mrcnn_ext.engine import settings

    monkeypatch.setattr(settings.comm, "get_world_size", lambda: 3)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH is 16, which 3 processes cannot share equally"):
        check_settings(load_config("", GOOD))


@pytest.mark.parametrize(
    "opts, message",
    [
        (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAline"), "the model cannot be built from this config: .*ROIAline"),
        (
            ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "resnet51", "MODEL.ROI_HEADS.IN_FEATURES",
             "['res4']", "MODEL.TIMM.OUT_FEATURES", "['res4']"),
            "the model cannot be built from this config: .*resnet51",
        ),
    ],
)  # fmt: skip
def test_models(opts, message):
    with pytest.raises(UserError, match=message):  # what timm lacks is found before the model is built
        Trainer.build_model(load_config("", [*GOOD, "MODEL.ROI_HEADS.NAME", "FusedRes5ROIHeads", *opts]))


LAZY = {
    "train": {
        "device": "cpu",
        "max_iter": 5,
        "eval_period": 0,
        "log_period": 20,
        "checkpointer": {"period": 5},
    }
}
LAZY_MISTAKES = [
    ({"train": {"max_iter": "many"}}, "train.max_iter must be an integer, got 'many'"),
    ({"train": {"max_iter": 0}}, "train.max_iter must be at least 1, got 0"),
    ({"train": {"log_period": 0}}, "train.log_period must be at least 1"),
    ({"train": {"device": "gpu"}}, "train.device must be a device of PyTorch's"),
    ({"train": {"ema_decay": -1}}, "train.ema_decay must be in"),
    ({"train": {"patience": 1}}, "train.patience needs a metric"),
    (
        {"dataloader": {"train": {"total_batch_size": 0}}},
        "dataloader.train.total_batch_size must be at least 1",
    ),
]


@pytest.mark.parametrize("change, message", LAZY_MISTAKES, ids=[message[:30] for _, message in LAZY_MISTAKES])
def test_lazy(change, message):
    check_lazy_settings(OmegaConf.create(LAZY))
    with pytest.raises(UserError, match=message):
        check_lazy_settings(OmegaConf.merge(LAZY, change))


def test_an_unknown_argument_of_a_call():
    with pytest.raises(
        UserError, match="model cannot be built from this config: .*unexpected keyword .*'widht'"
    ):
        _instantiate(LazyCall(torch.nn.Linear)(in_features=1, out_features=1, widht=2), "model")


def test_an_error_in_a_lazy_file(tmp_path):
    file = tmp_path / "x.py"
    file.write_text("model = dict()\ntrain = dict(lr=undefined)\n")
    with pytest.raises(UserError, match="x.py, line 2: NameError: name 'undefined' is not defined"):
        load_lazy_config(str(file))


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), building("the model"):
        raise ZeroDivisionError


def test_whole_numbers_are_floats_where_floats_are_wanted(tmp_path):
    (tmp_path / "a.yaml").write_text("SOLVER: {BASE_LR: 1, WEIGHT_DECAY: 0}\n")
    cfg = load_config(
        str(tmp_path / "a.yaml"), ["SOLVER.MOMENTUM", "0", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1]
    )
    values = (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM)
    assert values == (1, 0, 0) and {type(value) for value in values} == {float}
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1.0
    with pytest.raises(UserError, match="SOLVER.MAX_ITER must be of type int, got 1.5"):
        load_config("", ["SOLVER.MAX_ITER", "1.5"])
