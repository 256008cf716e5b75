"""Where the evaluator of a LazyConfig writes."""

import os

import pytest

pytest.importorskip("detectron2")
from detectron2.config import LazyCall
from omegaconf import OmegaConf

from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.engine.lazy import build_evaluator, load_lazy_config
from mrcnn_ext.evaluation import CityscapesInstanceEvaluator, COCOEvaluator

pytestmark = pytest.mark.detectron2


def test_cityscapes_evaluator_takes_no_folder():
    pytest.importorskip("cityscapesscripts")
    cfg = load_lazy_config(get_config_file("Cityscapes/mask_rcnn_R_50_FPN.py"))
    assert isinstance(build_evaluator(cfg), CityscapesInstanceEvaluator)


class Recorded(COCOEvaluator):
    """Keeps its arguments."""

    def __init__(self, dataset_name, output_dir=None):
        self.arguments = dataset_name, output_dir


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_coco_evaluator_writes_where_that_of_a_yaml_config_does(as_text, own):
    evaluator = LazyCall(Recorded)(dataset_name="some", **({"output_dir": own} if own else {}))
    if as_text:
        evaluator._target_ = f"{__name__}.Recorded"
    test = {"dataset": {"names": "some"}}
    cfg = OmegaConf.create(
        {"train": {"output_dir": "out"}, "dataloader": {"test": test, "evaluator": evaluator}},
        flags={"allow_objects": True},
    )
    assert build_evaluator(cfg).arguments == ("some", own or os.path.join("out", "inference", "some"))
    assert cfg.dataloader.evaluator.get("output_dir") == own, "the config is changed"
