"""Batch and learning rate by the number of processes."""

import pytest

pytest.importorskip("detectron2")
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from mrcnn_ext import model_zoo
from mrcnn_ext.engine import UserError
from mrcnn_ext.engine.batch_scaling import scale_lazily
from mrcnn_ext.engine.settings import check_lazy_settings, check_settings

pytestmark = pytest.mark.detectron2

NAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN"


@pytest.mark.parametrize("processes", [1, 16])
def test_a_lazy_config_is_scaled_as_a_yaml_config(processes, caplog):
    yaml, lazy = model_zoo.get_config(f"{NAME}.yaml"), model_zoo.get_config(f"{NAME}.py")
    yaml.SOLVER.REFERENCE_WORLD_SIZE = lazy.train.reference_world_size = 8
    yaml.TEST.EVAL_PERIOD = lazy.train.eval_period = 8000
    yaml = DefaultTrainer.auto_scale_workers(yaml, processes)
    with caplog.at_level("INFO"):
        scale_lazily(lazy, processes)
    assert lazy.dataloader.train.total_batch_size == yaml.SOLVER.IMS_PER_BATCH == 2 * processes
    assert lazy.optimizer.lr == yaml.SOLVER.BASE_LR == pytest.approx(0.0025 * processes)
    assert lazy.train.max_iter == yaml.SOLVER.MAX_ITER == 1280000 // processes
    assert lazy.train.eval_period == yaml.TEST.EVAL_PERIOD
    assert lazy.train.checkpointer.period == yaml.SOLVER.CHECKPOINT_PERIOD
    said = f"The config is for 8 processes, and there are {processes}: {2 * processes} images an iteration instead"
    assert said in caplog.text and "instead of 0.02" in caplog.text
    before = lazy.copy()
    scale_lazily(lazy, processes)  # which it is for by now
    assert lazy == before


def test_other_configs_stay():
    lazy = model_zoo.get_config(f"{NAME}.py")
    before = lazy.copy()
    scale_lazily(lazy, 3)
    assert lazy == before


def test_a_batch_that_the_processes_cannot_share(monkeypatch):
    yaml, lazy = model_zoo.get_config(f"{NAME}.yaml"), model_zoo.get_config(f"{NAME}.py")
    yaml.MODEL.DEVICE = lazy.train.device = "cpu"
    yaml.SOLVER.REFERENCE_WORLD_SIZE = lazy.train.reference_world_size = 8
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)  # 6 images
    check_settings(yaml)
    check_lazy_settings(lazy)
    yaml.SOLVER.REFERENCE_WORLD_SIZE = lazy.train.reference_world_size = 5
    with pytest.raises(UserError, match="SOLVER.REFERENCE_WORLD_SIZE is 5, and SOLVER.IMS_PER_BATCH 16"):
        check_settings(yaml)
    with pytest.raises(UserError, match="train.reference_world_size is 5, and dataloader.train.total_batch"):
        check_lazy_settings(lazy)
