"""Names of detectron2's model zoo as models."""

import pytest

pytest.importorskip("detectron2")
from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import load_predictor, models

pytestmark = pytest.mark.detectron2

NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"


@pytest.mark.parametrize("arguments", [(NAME,), (None, NAME)])
def test_a_name_stands_for_its_config_and_weights(monkeypatch, arguments):
    monkeypatch.setattr(models, "_from_yaml", lambda cfg, weights, device, trust: (cfg, weights))
    cfg, weights = load_predictor(*arguments, opts=["INPUT.MIN_SIZE_TEST", "400"])
    assert weights.startswith("https://") and weights.endswith("137849600/model_final_f10217.pkl")
    assert cfg.MODEL.MASK_ON and cfg.INPUT.MIN_SIZE_TEST == 400 and cfg.MODEL.RESNETS.DEPTH == 50


def test_weights_that_cannot_be_fetched(monkeypatch):
    def fail(*args):
        raise OSError("no network")

    monkeypatch.setattr(models, "_from_yaml", fail)
    with pytest.raises(
        UserError, match="3x.yaml: its weights cannot be downloaded from https://.*: no network"
    ):
        load_predictor(None, NAME)
    with pytest.raises(
        UserError, match="no model zoo has trained weights of this name; did you mean COCO-Inst"
    ):
        load_predictor(None, NAME.replace("3x", "4x"))
