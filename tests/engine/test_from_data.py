"""Numbers of classes and keypoints follow from the data, unless the config says otherwise."""

import json
import logging

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.engine.checks import check_config, check_lazy_config
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.engine.lazy import load_lazy_config
from mrcnn_ext.engine.setup import load_config

pytestmark = pytest.mark.detectron2

NAME = "from_data_test"


@pytest.fixture
def config_file(tmp_path):
    """A config of data of three classes and four keypoints, with further keys of MODEL and a description."""

    def make(description=None, test=(NAME,), **model):
        objects = {"keypoints": ["head", "tail", "left_fin", "right_fin"]}
        content = {
            "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "keypoints": [3, 3, 2] * 4}
            ],
            "categories": [{"id": k, "name": n, **objects} for k, n in enumerate(("cod", "eel", "ray"), 1)],
        }
        (tmp_path / "fish.json").write_text(json.dumps(content))
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "1.png")
        entry = [NAME, str(tmp_path / "fish.json"), str(tmp_path), *([description] if description else [])]
        datasets = {"COCO_FORMAT": [entry], "TRAIN": [NAME], "TEST": list(test)}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"DATASETS": datasets, "MODEL": {"KEYPOINT_ON": True, **model}}))
        return str(path)

    yield make
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def test_they_follow_from_the_data(config_file, caplog):
    with caplog.at_level(logging.INFO, "mrcnn_ext"):
        cfg = load_config(config_file({"sigmas": "uniform"}))
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 4
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 3, by dataset 'from_data_test' (cod, eel, ray)" in caplog.text
    check_config(cfg)


def test_the_config_may_say_otherwise(config_file):
    cfg = load_config(
        config_file(ROI_HEADS={"NUM_CLASSES": 80}), ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 17]
    )
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80 and cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17
    with pytest.raises(UserError, match="has 17 .MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"):
        check_config(cfg)


def test_without_data_the_defaults_stay():
    cfg = load_config("", ["DATASETS.TRAIN", ("not_there",)])
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 80 and cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17


def test_keypoints_of_a_model_without_are_left_alone(config_file):
    assert load_config(config_file(KEYPOINT_ON=False)).MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 17


def test_what_is_missing_is_asked_for_by_its_key(config_file):
    with pytest.raises(
        UserError, match=r"are not COCO's.*TEST.KEYPOINT_OKS_SIGMAS.*start from: \[0.05, 0.05"
    ):
        check_config(load_config(config_file()))


def test_sigmas_by_name_in_a_config(config_file, caplog):
    cfg = load_config(config_file(), ["TEST.KEYPOINT_OKS_SIGMAS", ["uniform"]])
    assert cfg.TEST.KEYPOINT_OKS_SIGMAS == [0.05] * 4
    assert "TEST.KEYPOINT_OKS_SIGMAS: sigmas of its keypoints are [0.05, 0.05" in caplog.text
    check_config(cfg)
    with pytest.raises(UserError, match="TEST.KEYPOINT_OKS_SIGMAS: sigmas must be numbers, 'coco' or"):
        load_config("", ["TEST.KEYPOINT_OKS_SIGMAS", ["dark"]])


@pytest.fixture
def lazy_file(config_file, tmp_path):
    load_config(config_file({"sigmas": "uniform"}))  # registers the data
    path = tmp_path / "fish.py"
    path.write_text(
        "from mrcnn_ext.model_zoo import get_config\n"
        "_cfg = get_config('COCO-MultiTask/mask_keypoint_rcnn_R_50_FPN.py')\n"
        "dataloader, lr_multiplier, model = _cfg.dataloader, _cfg.lr_multiplier, _cfg.model\n"
        "optimizer, train = _cfg.optimizer, _cfg.train\n"
        f"dataloader.train.dataset.names = dataloader.test.dataset.names = {NAME!r}\n"
    )
    return str(path)


def test_lazy_configs_follow_their_data(lazy_file, caplog):
    cfg = load_lazy_config(lazy_file)
    heads = cfg.model.roi_heads
    assert heads.num_classes == heads.box_predictor.num_classes == heads.mask_head.num_classes == 3
    assert heads.keypoint_head.num_keypoints == 4
    assert list(cfg.dataloader.train.mapper.keypoint_hflip_indices) == [0, 1, 3, 2]
    assert "model.roi_heads.num_classes is 3, by dataset 'from_data_test' (cod, eel, ray)" in caplog.text
    cfg.train.device, cfg.dataloader.train.mapper.use_instance_mask = "cpu", False
    cfg.dataloader.evaluator.tasks = ["bbox", "keypoints"]
    check_lazy_config(cfg)


def test_lazy_configs_may_say_otherwise(lazy_file, tmp_path):
    said = [
        "model.roi_heads.num_classes=80",
        "model.roi_heads.keypoint_head.num_keypoints=17",
        "dataloader.train.mapper.keypoint_hflip_indices=[0,1,2,3]",
    ]
    cfg = load_lazy_config(lazy_file, said)
    assert cfg.model.roi_heads.num_classes == 80 and cfg.model.roi_heads.keypoint_head.num_keypoints == 17
    assert list(cfg.dataloader.train.mapper.keypoint_hflip_indices) == [0, 1, 2, 3]
    with open(lazy_file, "a") as file:
        file.write("model.roi_heads.num_classes = 5\n")
    assert load_lazy_config(lazy_file).model.roi_heads.num_classes == 5
