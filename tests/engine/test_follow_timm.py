"""The input and the weights of a timm backbone."""

import warnings

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling.backbone import build_backbone

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.engine.description import config_of
from mrcnn_ext.engine.setup import complete
from mrcnn_ext.modeling.backbone import follow_timm

pytestmark = pytest.mark.detectron2

R_50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


def make(*opts):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    options = [
        "MODEL.BACKBONE.NAME",
        "build_timm_backbone",
        "MODEL.TIMM.NAME",
        "mixnet_s",
        "MODEL.WEIGHTS",
        R_50,
    ]
    cfg.merge_from_list([*options, "MODEL.TIMM.OUT_FEATURES", ["res4"], *opts])
    return cfg


def test_both_are_those_of_the_timm_model_and_told():
    cfg = make("MODEL.TIMM.NAME", "inception_next_tiny")  # with a mean of its own among timm's
    told = follow_timm(cfg)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.WEIGHTS == "" and cfg.MODEL.TIMM.PRETRAINED is True
    assert cfg.MODEL.PIXEL_MEAN == pytest.approx([123.675, 116.28, 103.53])
    assert cfg.MODEL.PIXEL_STD == pytest.approx([58.395, 57.12, 57.375])
    assert len(told) == 2 and "PIXEL_STD [58.395, 57.12, 57.375], as inception_next_tiny of timm" in told[0]
    assert f"MODEL.WEIGHTS {R_50} are not of inception_next_tiny: it starts from timm's" in told[1]
    before = cfg.dump()
    assert follow_timm(cfg) == [] and cfg.dump() == before


def test_another_normalisation_is_followed():
    cfg = make("MODEL.TIMM.NAME", "mobilevit_s")  # trained on images in 0..1
    follow_timm(cfg)
    assert cfg.MODEL.PIXEL_MEAN == [0.0, 0.0, 0.0] and cfg.MODEL.PIXEL_STD == [255.0, 255.0, 255.0]


def test_what_the_config_says_stays():
    for said in (
        ("MODEL.PIXEL_STD", [57.0, 57.0, 58.0]),
        ("INPUT.FORMAT", "RGB"),
        ("MODEL.TIMM.INPUT", "config"),
    ):
        cfg = make("MODEL.WEIGHTS", "model_final.pth", *said)
        before = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT
        assert follow_timm(cfg) == [] and cfg.MODEL.WEIGHTS == "model_final.pth"
        assert (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT) == before
    cfg = make("MODEL.TIMM.WEIGHTS", "mixnet.safetensors")
    assert "starts from mixnet.safetensors" in follow_timm(cfg)[1]
    assert cfg.MODEL.WEIGHTS == "" and not cfg.MODEL.TIMM.PRETRAINED
    cfg = make("MODEL.BACKBONE.NAME", "build_resnet_backbone")
    assert follow_timm(cfg) == [] and cfg.MODEL.WEIGHTS == R_50


def test_a_checkpoint_is_used_as_it_was_trained():
    """Before there was the key, with detectron2's input."""
    cfg = make("MODEL.WEIGHTS", "")
    del cfg.MODEL.TIMM["INPUT"]
    cfg = config_of({"kind": "yaml", "config": cfg.dump(), "metadata": {}}, "model.pth")
    assert complete(cfg).INPUT.FORMAT == "BGR" and complete(cfg).MODEL.PIXEL_STD == [1.0, 1.0, 1.0]


def test_stock_classes_use_the_config_as_it_is_and_warn():
    with pytest.warns(
        UserWarning, match="are not of mixnet_s, which starts from random weights: set MODEL.WEIGHTS"
    ):
        build_backbone(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_backbone(make("MODEL.WEIGHTS", ""))
        build_backbone(complete(make("MODEL.WEIGHTS", "")))
