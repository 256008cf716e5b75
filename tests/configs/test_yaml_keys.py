"""add_mrcnn_ext_config, and our parts in a config of detectron2's own zoo by config lines alone."""

import copy

import pytest
import torch
import yaml

pytest.importorskip("detectron2")
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

from mrcnn_ext import add_mrcnn_ext_config, modeling
from mrcnn_ext.model_zoo import detectron2_zoo

pytestmark = pytest.mark.detectron2


def values(cfg, prefix=""):
    """Every key with its value, {"MODEL.DEVICE": "cuda", ...}."""
    found = {}
    for key, value in cfg.items():
        found |= values(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_a_second_call_changes_nothing():
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.MODEL.TIMM.NAME = "convnext_tiny"
    cfg.MODEL.TIMM.ARGS.drop_path_rate = 0.1
    cfg.MODEL.ROI_MASK_HEAD.LOSS_WEIGHT = 2.0
    before = copy.deepcopy(cfg)
    add_mrcnn_ext_config(cfg)
    assert cfg == before


def test_detectron2s_defaults_stay_as_they_are():
    before = values(get_cfg())
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    assert {key: value for key, value in values(cfg).items() if key in before} == before
    cfg.MODEL.TIMM.OUT_FEATURES.append("res6")
    assert values(get_cfg()) == before
    fresh = get_cfg()
    add_mrcnn_ext_config(fresh)
    assert fresh.MODEL.TIMM.OUT_FEATURES == ["res2", "res3", "res4", "res5"]


def test_args_of_the_timm_model_take_any_key_from_a_file(tmp_path):
    file = tmp_path / "config.yaml"
    arguments = {"drop_path_rate": 0.1, "channels": [8, 8]}
    file.write_text(yaml.safe_dump({"MODEL": {"TIMM": {"ARGS": arguments}}}))
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(str(file))
    assert dict(cfg.MODEL.TIMM.ARGS) == arguments
    with pytest.raises(KeyError, match="MODEL.TIMM.NAEM"):
        file.write_text(yaml.safe_dump({"MODEL": {"TIMM": {"NAEM": "resnet18"}}}))
        cfg.merge_from_file(str(file))


# What a user writes below a copy of detectron2's config, and what it makes of the model.
SWAPS = {
    "ROI heads": ({"ROI_HEADS": {"NAME": "FusedROIHeads"}}, "roi_heads", "FusedROIHeads"),
    "mask head": ({"ROI_MASK_HEAD": {"NAME": "FCNMaskHead"}}, "roi_heads.mask_head", "FCNMaskHead"),
    "backbone": (
        {"BACKBONE": {"NAME": "build_timm_fpn_backbone", "FREEZE_AT": 0}, "TIMM": {"NAME": "resnet18"}},
        "backbone.bottom_up",
        "TimmBackbone",
    ),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_part_of_ours_in_detectron2s_yaml(tmp_path, swap):
    lines, where, expected = SWAPS[swap]
    base = detectron2_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    file = tmp_path / "my_config.yaml"
    file.write_text(yaml.safe_dump({"_BASE_": base, "MODEL": {"DEVICE": "cpu", **lines}}))
    cfg = get_cfg()
    if swap == "backbone":  # the others have no key of their own
        add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(str(file))
    model = build_model(cfg).eval()
    assert type(model.get_submodule(where)).__name__ == expected
    with torch.no_grad():
        assert "instances" in model([{"image": torch.zeros(3, 64, 64)}])[0]


def test_parts_of_ours_in_detectron2s_lazy_config():
    cfg = detectron2_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
    cfg = LazyConfig.apply_overrides(
        cfg,
        [
            "model.roi_heads.box_pooler._target_=mrcnn_ext.modeling.FusedROIPooler",
            "model.roi_heads.mask_head._target_=mrcnn_ext.modeling.FCNMaskHead",
        ],
    )
    model = instantiate(cfg.model).eval()
    assert type(model.roi_heads.box_pooler) is modeling.FusedROIPooler
    assert type(model.roi_heads.mask_head) is modeling.FCNMaskHead
    with torch.no_grad():
        assert "instances" in model([{"image": torch.zeros(3, 64, 64)}])[0]
