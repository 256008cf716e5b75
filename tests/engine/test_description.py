"""Checkpoints that say what they are: to predict, evaluate and export, the file is enough."""

import sys
from types import SimpleNamespace

import pytest
import yaml

pytest.importorskip("detectron2")

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mrcnn_ext import __version__
from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.engine import Checkpointer, UserError, setup
from mrcnn_ext.engine.description import describe, describe_lazily, instantiate_described, read_description
from mrcnn_ext.inference import load_predictor
from mrcnn_ext.inference.models import categories

pytestmark = pytest.mark.detectron2


@pytest.fixture
def checkpoint(tiny_cfg, tmp_path):
    """A model that was trained on a dataset which is gone, and its file."""
    cfg = tiny_cfg(
        *("DATASETS.TRAIN", "('gone_train',)", "DATASETS.TEST", "('gone_val',)"),
        *("DATASETS.COCO_FORMAT", "[['gone_train', 'gone.json', 'gone']]", "INPUT.MIN_SIZE_TEST", "64"),
        *("MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead", "MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks"),
        *("MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3"),
    )
    MetadataCatalog.get("gone_train").set(
        thing_classes=["ski", "pole", "boot"],
        thing_dataset_id_to_contiguous_id={4: 0, 7: 1, 9: 2},
        keypoint_names=["tip", "middle", "end"],
        keypoint_flip_map=[],
        keypoint_oks_sigmas=[0.1, 0.2, 0.3],
    )
    model = build_model(cfg)
    Checkpointer(model, str(tmp_path), about=lambda: describe(cfg)).save("model")
    MetadataCatalog.remove("gone_train")
    return SimpleNamespace(model=model.eval(), file=str(tmp_path / "model.pth"))


def test_a_predictor_of_the_file_alone(checkpoint, tmp_path, monkeypatch, make_batch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    predictor = load_predictor(weights=checkpoint.file, opts=["TEST.DETECTIONS_PER_IMAGE", "4"])
    state = predictor.model.state_dict()
    for name, value in checkpoint.model.state_dict().items():
        assert torch.equal(state[name], value), name
    torch.testing.assert_close(
        predictor.model.roi_heads.keypoint_head.oks_sigmas, torch.tensor([0.1, 0.2, 0.3])
    )
    assert predictor.mapper.augmentations.augs[0].short_edge_length == (64, 64)
    assert categories(predictor.metadata) == {
        0: {"id": 4, "name": "ski"},
        1: {"id": 7, "name": "pole"},
        2: {"id": 9, "name": "boot"},
    }
    assert predictor.metadata.keypoint_names == ["tip", "middle", "end"]
    with torch.no_grad():
        assert len(predictor.model.eval()(make_batch([[4, 4, 40, 60]]))[0]["instances"]) == 4


def test_versions_are_told(checkpoint):
    about = read_description(checkpoint.file)
    assert about["versions"]["mrcnn_ext"] == __version__
    assert {"torch", "detectron2", "python"} <= about["versions"].keys()


def test_evaluation_takes_the_files_config(checkpoint, tmp_path, monkeypatch):
    # Logging is the program's business: other tests look at what is logged.
    monkeypatch.setattr(sys.modules["mrcnn_ext.engine.setup"], "start", lambda *args: None)
    args = SimpleNamespace(
        config_file="",
        eval_only=True,
        resume=False,
        num_gpus=0,
        opts=["MODEL.WEIGHTS", checkpoint.file, "OUTPUT_DIR", str(tmp_path / "out")],
    )
    cfg = setup(args)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 3 and cfg.DATASETS.TEST == ("gone_val",)
    assert cfg.OUTPUT_DIR == str(tmp_path / "out")


def test_checkpoints_that_do_not_say(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="x.pth does not hold its config, .* give --config-file"):
        load_predictor(weights=str(tmp_path / "x.pth"))
    with pytest.raises(UserError, match="weights file not found: none.pth"):
        load_predictor(weights="none.pth")
    with pytest.raises(UserError, match="no model: give a checkpoint"):
        load_predictor()


def test_a_lazy_config_in_a_file():
    cfg = LazyConfig.load(get_config_file("COCO-MultiTask/mask_keypoint_rcnn_R_50_FPN.py"))
    about = describe_lazily(cfg, [])
    parts = yaml.safe_load(about["config"])
    model = instantiate_described(parts["model"], "x.pth")
    assert str(model) == str(instantiate(cfg.model))
    mapper = instantiate_described(parts["mapper"], "x.pth")
    assert mapper.image_format == cfg.dataloader.test.mapper.image_format
    assert str(mapper.augmentations) == str(instantiate(cfg.dataloader.test.mapper).augmentations)


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "os.system", "command": "true"},
        {"_target_": "torch.nn.modules.linear.Linear", "bias": {"_target_": "detectron2.config.LazyConfig.load"}},
        {"_target_": "detectron2.modeling.backbone.build.os.system", "command": "true"},
        {"_target_": "detectron2.modeling.backbone.resnet.np.load", "file": "x"},
        [{"_target_": "builtins.eval"}],
        {"_target_": "torch.nn.modules.linear.Linear", "in_features": "${oc.env:HOME}"},
    ],
)  # fmt: skip
def test_a_lazy_config_in_a_file_calls_components_alone(part):
    with pytest.raises(UserError, match="x.pth: its config (calls|holds the expression) .*not used"):
        instantiate_described(part, "x.pth")
