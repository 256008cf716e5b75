"""The pooler's share of a model: it runs, agrees first, and refuses to time what does not."""

import pytest

pytest.importorskip("detectron2")
import torch

from mrcnn_ext.benchmark import end_to_end
from mrcnn_ext.modeling import FusedROIPooler

pytestmark = pytest.mark.detectron2

IMAGE = (128, 192)


@pytest.fixture(autouse=True)
def narrow_model(monkeypatch):
    cfg = end_to_end.model_zoo.get_config(end_to_end.CONFIG)
    model = cfg.MODEL
    model.RESNETS.STEM_OUT_CHANNELS = model.RESNETS.WIDTH_PER_GROUP = 8
    model.RESNETS.RES2_OUT_CHANNELS = model.FPN.OUT_CHANNELS = model.ROI_MASK_HEAD.CONV_DIM = 32
    model.ROI_BOX_HEAD.FC_DIM = model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    model.RPN.POST_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TEST = 100
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    monkeypatch.setattr(end_to_end.model_zoo, "get_config", lambda name: cfg.clone())


def test_report_has_inference_and_training():
    lines = end_to_end.report("cpu", 1, 0.0, IMAGE).splitlines()
    assert lines[1].startswith("inference") and lines[2].startswith("training step, 8 objects")
    for line in lines[1:]:
        stock, ours, ratio = map(float, line[34:].split()[:3])
        assert stock > 0 and ours > 0 and ratio == pytest.approx(stock / ours, rel=0.2)


def test_poolers_that_disagree_are_not_timed(monkeypatch):
    class Wrong(FusedROIPooler):
        def forward(self, x, box_lists):
            return torch.zeros_like(super().forward(x, box_lists))

    monkeypatch.setattr(end_to_end, "FusedROIPooler", Wrong)
    with pytest.raises(AssertionError, match="different detections"):
        end_to_end.report("cpu", 1, 0.0, IMAGE)
