"""Finding configs, and building their models."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import CfgNode
from omegaconf import DictConfig

from mrcnn_ext import config_files, model_zoo

pytestmark = pytest.mark.detectron2


def test_configs_come_in_pairs():
    names = model_zoo.list_configs()
    stems = {name.rpartition(".")[0] for name in names}
    assert sorted(names) == sorted(f"{stem}.{suffix}" for stem in stems for suffix in ("py", "yaml"))
    assert {"quickstart", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4"} < stems


@pytest.mark.parametrize("name", model_zoo.list_configs())
def test_every_config_loads(name):
    cfg = model_zoo.get_config(name)
    assert isinstance(cfg, CfgNode if name.endswith(".yaml") else DictConfig)
    assert Path(model_zoo.get_config_file(name)).is_file()


def test_an_unknown_name_lists_those_like_it():
    with pytest.raises(
        ValueError, match="'Cityscapes/mask_rcnn_R50_FPN.yaml'; there is .*mask_rcnn_R_50_FPN.yaml"
    ):
        model_zoo.get_config("Cityscapes/mask_rcnn_R50_FPN.yaml")
    with pytest.raises(ValueError, match="there is COCO.*, quickstart.yaml"):
        model_zoo.get_config_file("?")


def test_there_are_no_trained_weights_yet():
    with pytest.raises(ValueError, match="no trained weights for quickstart.py; trained=False"):
        model_zoo.get_config("quickstart.py", trained=True)


@pytest.mark.parametrize("name", ["quickstart.yaml", "quickstart.py"])
def test_get_builds_the_model(name):
    model = model_zoo.get(name, device="cpu")
    assert model.training and type(model.roi_heads.mask_head).__name__ == "FCNMaskHead"
    with torch.no_grad():
        assert "instances" in model.eval()([{"image": torch.zeros(3, 64, 64)}])[0]


def test_configs_are_found_beside_the_package_and_inside_it(tmp_path):
    package = tmp_path / "mrcnn_ext"
    (tmp_path / "configs").mkdir()
    assert config_files._find_configs(package) == tmp_path / "configs"
    (package / "configs").mkdir(parents=True)
    assert config_files._find_configs(package) == package / "configs"
