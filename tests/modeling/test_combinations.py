"""Our parts and the stock ones in every combination: one trains, infers, and gives what the others give."""

import itertools
import math

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import GeneralizedRCNN, build_backbone, build_model, build_proposal_generator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.utils.events import EventStorage

from mrcnn_ext.modeling import FusedROIPooler

pytestmark = pytest.mark.detectron2

STOCK = {
    "backbone": "build_resnet_fpn_backbone",
    "roi_heads": "StandardROIHeads",
    "mask_head": "MaskRCNNConvUpsampleHead",
    "keypoint_head": "KRCNNConvDeconvUpsampleHead",
    "pooler": ROIPooler,
}
OURS = {
    "backbone": "build_timm_fpn_backbone",
    "roi_heads": "FusedROIHeads",
    "mask_head": "FCNMaskHead",
    "keypoint_head": "HeatmapKeypointHead",
    "pooler": FusedROIPooler,
}
COMBINATIONS = [
    frozenset(part for part, ours in zip(STOCK, choice, strict=True) if ours)
    for choice in itertools.product([False, True], repeat=len(STOCK))
]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"}


# Heads that detectron2 has no counterpart of: keys of their section of the config.
OTHER_HEADS = {
    "SimCC": {"ROI_KEYPOINT_HEAD": ["NAME", "SimCCKeypointHead", "NORM", "BN", "LABEL_SMOOTHING", "0.1"]},
    "WASP": {"ROI_KEYPOINT_HEAD": ["NAME", "HeatmapKeypointHead", "WASP_RATES", "[1, 2]"]},
    "ConvLSTM": {"ROI_KEYPOINT_HEAD": ["NAME", "ConvLSTMKeypointHead", "LSTM_DIM", "8"]},
    "UniPose-LSTM": {
        "ROI_KEYPOINT_HEAD": ["NAME", "UniPoseLSTMKeypointHead", "LSTM_DIM", "8", "WASP_RATES", "[1, 2]"]
    },
    "Gaussian targets, decoded by OKS": {
        "ROI_KEYPOINT_HEAD": ["NAME", "HeatmapKeypointHead", "TARGET_SIGMA", "2.0", "DECODING", "oks"]
    },
}


def build(tiny_cfg, ours, head=None):
    """A model of stock components, but those named in ``ours``, with weights that depend on the backbone alone."""
    parts = {part: (OURS if part in ours else STOCK)[part] for part in STOCK}
    cfg = tiny_cfg(
        *["MODEL.BACKBONE.NAME", parts["backbone"]],
        *["MODEL.ROI_MASK_HEAD.NAME", parts["mask_head"]],
        *["MODEL.ROI_KEYPOINT_HEAD.NAME", parts["keypoint_head"]],
    )
    for section, keys in OTHER_HEADS.get(head, {}).items():
        cfg.MODEL[section].merge_from_list(keys)
    torch.manual_seed(0)
    backbone = build_backbone(cfg)
    proposal_generator = build_proposal_generator(cfg, backbone.output_shape())
    roi_heads = ROI_HEADS_REGISTRY.get(parts["roi_heads"])
    arguments = roi_heads.from_config(cfg, backbone.output_shape())
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    for name, size in [("box_pooler", 7), ("mask_pooler", 14), ("keypoint_pooler", 14)]:
        arguments[name] = parts["pooler"](size, scales, 0, "ROIAlignV2")
    return GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=proposal_generator,
        roi_heads=roi_heads(**arguments),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def step_and_infer(model, batch):
    """Losses of one training step from a seed, then the predictions of the model it gives."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    with torch.no_grad():
        predictions = [output["instances"] for output in model.eval().inference(batch)]
    return {name: loss.item() for name, loss in losses.items()}, predictions


@pytest.fixture(scope="module")
def reference():
    return {}  # of the stock components, one per backbone


@pytest.mark.parametrize("ours", COMBINATIONS, ids=lambda ours: "+".join(sorted(ours)) or "stock")
def test_trains_a_step_and_infers(tiny_cfg, make_batch, reference, ours):
    batch = make_batch(
        [[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30], [20, 20, 70, 60], [2, 40, 30, 62]]
    )
    losses, predictions = step_and_infer(build(tiny_cfg, ours), batch)
    assert set(losses) == LOSSES
    assert all(len(p) == 5 and p.pred_keypoints.shape == (5, 17, 3) for p in predictions)

    backbone = ours & {"backbone"}
    if backbone not in reference:
        reference[backbone] = step_and_infer(build(tiny_cfg, backbone), batch)
    stock_losses, stock_predictions = reference[backbone]
    assert losses == pytest.approx(stock_losses, rel=1e-4, abs=1e-5)
    for p, stock in zip(predictions, stock_predictions, strict=True):
        torch.testing.assert_close(p.pred_boxes.tensor, stock.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(p.scores, stock.scores, rtol=1e-4, atol=1e-4)
        assert (p.pred_masks != stock.pred_masks).float().mean() < 1e-3


@pytest.mark.parametrize("ours", [frozenset(), frozenset(OURS)], ids=["stock components", "our parts"])
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_other_heads_train_a_step_and_infer(tiny_cfg, make_batch, head, ours):
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [])
    losses, predictions = step_and_infer(build(tiny_cfg, ours, head), batch)
    assert set(losses) >= LOSSES and all(math.isfinite(loss) for loss in losses.values())
    assert all(len(p) == 5 and p.pred_keypoints.shape == (5, 17, 3) for p in predictions)
    assert all(p.pred_masks.shape == (5, 64, 80) for p in predictions)


# Further losses of our mask heads.
MASK_LOSSES = {
    "BoundaryMaskHead": {"loss_mask_boundary"},
    "MLPMaskHead": set(),
    "MaskScoringHead": {"loss_mask_iou"},
}
ROI_HEADS = ("StandardROIHeads", "FusedROIHeads", "CascadeROIHeads", "FusedCascadeROIHeads")


@pytest.mark.parametrize("roi_heads", ROI_HEADS)
@pytest.mark.parametrize("mask_head", MASK_LOSSES)
def test_mask_heads_under_all_roi_heads(tiny_cfg, make_batch, mask_head, roi_heads):
    cfg = tiny_cfg(
        *["MODEL.ROI_MASK_HEAD.NAME", mask_head, "MODEL.ROI_HEADS.NAME", roi_heads],
        *["MODEL.ROI_MASK_HEAD.ACTIVATION", "softmax", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
        *["MODEL.ROI_MASK_HEAD.FC_DIM", "16", "MODEL.ROI_MASK_HEAD.MASK_IOU.FC_DIM", "16"],
        *["MODEL.ROI_MASK_HEAD.MASK_IOU.CONV_DIM", "8"],
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    losses, predictions = step_and_infer(model, make_batch([[4, 4, 40, 60], [30, 10, 76, 50]]))
    assert {key for key in losses if key.startswith("loss_mask")} == {"loss_mask"} | MASK_LOSSES[mask_head]
    assert predictions[0].pred_masks.shape == (5, 64, 80)
    assert predictions[0].has("mask_scores") == (mask_head == "MaskScoringHead")
