"""Validation losses: right, and without a trace in the model or the random state."""

import random

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import get_event_storage
from timm.layers import BatchNormAct2d
from torch import nn

from mrcnn_ext.engine import ValidationLossHook, compute_losses

pytestmark = pytest.mark.detectron2


class Regression(nn.Module):
    """Squared error after batch norm and dropout; notes what its layers did."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, batch):
        x = torch.stack([item["x"] for item in batch])
        y = self.layers(x)
        if not self.training:
            return y
        get_event_storage().put_scalar("seen", 1.0)
        return {"loss_square": (y**2).mean(), "loss_abs": 0.1 * y.abs().mean()}


def make_batches(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [[{"x": torch.randn(3, generator=generator)} for _ in range(size)] for size in sizes]


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def random_states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_equals_direct_computation_over_images_of_unequal_batches():
    model, batches = Regression(), make_batches([3, 1])
    losses = compute_losses(model, batches)

    model.eval()
    with torch.no_grad():
        y = model([item for batch in batches for item in batch])
    assert losses == pytest.approx(
        {"loss_square": (y**2).mean().item(), "loss_abs": 0.1 * y.abs().mean().item()}
    )


@pytest.mark.parametrize("training", [True, False])
def test_leaves_no_trace(training):
    model = Regression().train(training)
    model.layers[1].eval()  # frozen by hand
    before, random_before = states(model), random_states()
    compute_losses(model, make_batches([4, 4]))
    after = states(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert random_states() == random_before
    assert all(parameter.grad is None for parameter in model.parameters())
    modes = [model.training, *(layer.training for layer in model.layers)]
    assert modes == [training, training, False, training, training]


class Normaliser(Regression):
    """Divides its losses by a running mean, as detectron2's dense detectors do."""

    def __init__(self):
        super().__init__()
        self.loss_normalizer = 50.0

    def forward(self, batch):
        losses = super().forward(batch)
        self.loss_normalizer = 0.5 * self.loss_normalizer + len(batch)
        return {name: loss / self.loss_normalizer for name, loss in losses.items()}


def test_running_normalisers_are_left_as_they_were():
    model, batches = Normaliser(), make_batches([1, 1, 1])
    losses = compute_losses(model, batches)
    assert model.loss_normalizer == 50
    assert compute_losses(model, batches[::-1]) == pytest.approx(losses)


def test_norms_with_parts_act_as_in_inference():
    model = Regression()
    model.layers[1] = nn.Sequential(nn.Unflatten(1, (4, 1, 1)), BatchNormAct2d(4), nn.Flatten())
    model.layers[1][1].running_mean.fill_(-5)
    batches = make_batches([1])
    losses = compute_losses(model, batches)
    model.eval()
    with torch.no_grad():
        assert losses["loss_square"] == pytest.approx(model(batches[0]).square().mean().item())


def test_no_trace_after_an_error():
    model = Regression()
    before = states(model)
    with pytest.raises(KeyError):
        compute_losses(model, [*make_batches([2]), [{}]])
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no image with annotations"):
        compute_losses(Regression(), [])


def small_rcnn():
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    torch.manual_seed(0)
    return build_model(cfg)


def image(index):
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 50.0]]))
    instances.gt_classes = torch.tensor([index % 2])
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 8:50, 8:40] = True
    instances.gt_masks = BitMasks(mask)
    pixels = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(index))
    return {"image": pixels, "instances": instances, "file_name": f"{index}.png"}


def test_detector_losses_do_not_depend_on_the_order_or_the_seed():
    model = small_rcnn()
    before = states(model)
    images = [[image(i)] for i in range(3)]
    torch.manual_seed(1)
    losses = compute_losses(model, images)
    torch.manual_seed(2)
    assert compute_losses(model, images[::-1]) == pytest.approx(losses)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())
    assert model.training


def test_hook_stores_losses_at_its_period_and_at_the_end():
    model = Regression()
    validation = make_batches([4], seed=1)
    data = make_batches([4] * 10)
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), 0.1))
    hook = ValidationLossHook(2, model, lambda: validation)
    trainer.register_hooks([hook])
    trainer.train(0, 5)

    storage = trainer.storage
    assert [iteration for _, iteration in storage.history("val/total_loss").values()] == [1, 3, 5]
    expected = compute_losses(model, validation)
    assert storage.latest()["val/loss_abs"][0] == pytest.approx(expected["loss_abs"])
    assert storage.latest()["val/total_loss"][0] == pytest.approx(sum(expected.values()))
    # What the model itself stores while validating stays out of the training's storage.
    assert len(storage.history("seen").values()) == 5


def test_hook_without_data_does_nothing():
    model, asked = Regression(), []
    trainer = SimpleTrainer(model, make_batches([4] * 4), torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([ValidationLossHook(1, model, lambda: asked.append(1))])
    trainer.train(0, 3)
    assert asked == [1] and "val/total_loss" not in trainer.storage.latest()


def test_hook_does_not_run_after_a_training_that_failed():
    def broken():
        yield from make_batches([4])
        raise RuntimeError("broken data")

    model = Regression()
    trainer = SimpleTrainer(model, broken(), torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([ValidationLossHook(0, model, lambda: make_batches([4]))])
    with pytest.raises(RuntimeError, match="broken data"):
        trainer.train(0, 3)
    assert "val/total_loss" not in trainer.storage.latest()
