"""Our mask and keypoint heads against detectron2's: weights, outputs, losses, metrics."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import KRCNNConvDeconvUpsampleHead, MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext.layers import FCNMaskNetwork, HeatmapKeypointNetwork
from mrcnn_ext.modeling import FCNMaskHead, HeatmapKeypointHead

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
MASK = {"input_shape": SHAPE, "num_classes": 3, "conv_dims": [32, 32, 16]}
KEYPOINT = {"input_shape": SHAPE, "num_keypoints": 17, "conv_dims": [16, 16]}
PAIRS = {
    "mask": (FCNMaskHead, MaskRCNNConvUpsampleHead, MASK),
    "mask GN": (FCNMaskHead, MaskRCNNConvUpsampleHead, {**MASK, "conv_norm": "GN"}),
    "mask BN": (FCNMaskHead, MaskRCNNConvUpsampleHead, {**MASK, "conv_norm": "BN"}),
    "mask C4": (FCNMaskHead, MaskRCNNConvUpsampleHead, {**MASK, "conv_dims": [16]}),
    "mask class-agnostic": (FCNMaskHead, MaskRCNNConvUpsampleHead, {**MASK, "num_classes": 1}),
    "keypoint": (HeatmapKeypointHead, KRCNNConvDeconvUpsampleHead, KEYPOINT),
}


def build(cls, arguments, seed=0):
    torch.manual_seed(seed)
    return cls(**arguments)


@pytest.mark.parametrize("name", PAIRS)
def test_one_seed_gives_the_weights_and_outputs_of_the_stock_head(name):
    cls, stock_cls, arguments = PAIRS[name]
    ours, stock = build(cls, arguments), build(stock_cls, arguments)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for key, tensor in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    x = torch.randn(5, 8, 14, 14)
    torch.testing.assert_close(ours.layers(x), stock.layers(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_losses_and_metrics_are_those_of_the_stock_head(name, proposals):
    cls, stock_cls, arguments = PAIRS[name]
    results = []
    for head in (build(cls, arguments), build(stock_cls, arguments)):
        torch.manual_seed(1)
        with EventStorage() as storage:
            losses = head(
                torch.randn(3, 8, 14, 14), proposals([[4, 4, 40, 60], [9, 9, 30, 30]], [[8, 8, 70, 30]])
            )
        metrics = {key: value for key, (value, _) in storage.latest().items()}
        results.append(({key: loss.item() for key, loss in losses.items()}, metrics))
    assert results[0] == results[1]
    assert set(results[0][0]) == {"loss_mask" if "mask" in name else "loss_keypoint"}
    assert ("mask_rcnn/accuracy" in results[0][1]) == ("mask" in name)


@pytest.mark.parametrize("name", ["mask", "keypoint"])
def test_no_ground_truth_gives_a_zero_loss_with_a_gradient(name, proposals):
    cls, _, arguments = PAIRS[name]
    head = build(cls, arguments)
    with EventStorage():
        (loss,) = head(torch.randn(0, 8, 14, 14), proposals([], [])).values()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


@pytest.mark.parametrize("name", ["mask", "keypoint"])
def test_loss_weight_multiplies_the_loss(name, proposals):
    cls, _, arguments = PAIRS[name]
    losses = []
    for weight in (1.0, 2.5):
        head = build(cls, {**arguments, "loss_weight": weight})
        torch.manual_seed(1)
        with EventStorage():
            losses.append(*head(torch.randn(1, 8, 14, 14), proposals([[4, 4, 40, 60]])).values())
    assert losses[1].item() == pytest.approx(2.5 * losses[0].item())


def test_vis_period_puts_pictures_of_the_masks_into_the_storage(proposals):
    head = build(FCNMaskHead, {**MASK, "vis_period": 10})
    for iteration, pictures in [(10, 1), (11, 0)]:
        with EventStorage(iteration) as storage:
            head(torch.randn(1, 8, 14, 14), proposals([[4, 4, 40, 60]]))
            assert len(storage._vis_data) == pictures


@pytest.mark.parametrize("detections", [3, 0])
def test_inference_attaches_masks_and_keypoints(detections):
    instances = Instances((64, 80))
    instances.pred_boxes = Boxes(torch.tensor([[4.0, 4, 40, 60]]).repeat(detections, 1))
    instances.pred_classes = torch.arange(detections)
    x = torch.randn(detections, 8, 14, 14)
    with torch.no_grad():
        build(FCNMaskHead, MASK).eval()(x, [instances])
        build(HeatmapKeypointHead, KEYPOINT).eval()(x, [instances])
    assert instances.pred_masks.shape == (detections, 1, 28, 28)
    assert instances.pred_keypoints.shape == (detections, 17, 3)
    assert instances.pred_keypoint_heatmaps.shape == (detections, 17, 56, 56)


def test_config_sets_every_argument(tiny_cfg):
    cfg = tiny_cfg(
        *["MODEL.ROI_MASK_HEAD.NUM_CONV", "2", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"],
        *["MODEL.ROI_MASK_HEAD.NORM", "GN", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"],
        *["MODEL.ROI_MASK_HEAD.UP_SCALE", "2.0", "MODEL.ROI_MASK_HEAD.LOSS_WEIGHT", "0.5", "VIS_PERIOD", "7"],
        *["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32, 64)", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"],
        *["MODEL.ROI_KEYPOINT_HEAD.NORM", "GN", "MODEL.ROI_KEYPOINT_HEAD.UP_SCALE", "1.0"],
        *["MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT", "0.25"],
    )
    mask, keypoint = FCNMaskHead(cfg, SHAPE), HeatmapKeypointHead(cfg, SHAPE)
    x = torch.randn(2, 8, 14, 14)
    assert mask.layers(x).shape == (2, 1, 56, 56)
    assert mask.mask_fcn2.weight.shape == (32, 32, 3, 3)
    assert isinstance(mask.mask_fcn2.norm, torch.nn.GroupNorm) and mask.mask_fcn2.bias is None
    assert (mask.loss_weight, mask.vis_period) == (0.5, 7)
    assert keypoint.layers(x).shape == (2, 5, 28, 28)
    assert isinstance(keypoint.conv_fcn2.norm, torch.nn.GroupNorm)
    assert (keypoint.loss_weight, keypoint.loss_normalizer) == (0.25, "visible")


def test_networks_are_plain_modules():
    mask, keypoint = FCNMaskNetwork(8, 3, [16, 16]), HeatmapKeypointNetwork(8, 17, [16])
    x = torch.randn(2, 8, 10, 12)
    assert mask(x).shape == (2, 3, 20, 24) and keypoint(x).shape == (2, 17, 40, 48)
    for network in (mask, keypoint):
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))
    with pytest.raises(ValueError, match="conv_dims is empty"):
        FCNMaskNetwork(8, 3, [])
