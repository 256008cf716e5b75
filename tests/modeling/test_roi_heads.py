"""Our ROI heads from a config: the stock ones with other poolers."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    ROI_MASK_HEAD_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
    build_roi_heads,
)
from detectron2.utils.events import EventStorage

from mrcnn_ext.modeling import FusedCascadeROIHeads, FusedRes5ROIHeads, FusedROIHeads, FusedROIPooler

pytestmark = pytest.mark.detectron2

FPN_SHAPE = {f"p{k}": ShapeSpec(channels=32, stride=2**k) for k in range(2, 6)}
SECTIONS = {"box": "ROI_BOX_HEAD", "mask": "ROI_MASK_HEAD", "keypoint": "ROI_KEYPOINT_HEAD"}


def c4_opts(channels):
    """For tiny_cfg: a C4 model over the feature res4 with so many channels."""
    return [
        *["MODEL.KEYPOINT_ON", "False", "MODEL.ROI_HEADS.NAME", "FusedRes5ROIHeads"],
        *["MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"],
        *["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"],
        *["MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32, 64]]"],
        *["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.NORM", "BN"],
        *["MODEL.RESNETS.RES2_OUT_CHANNELS", str(channels // 4), "MODEL.RESNETS.WIDTH_PER_GROUP", "4"],
    ]


def losses_and_grads(model, batch):
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    return {name: loss.item() for name, loss in losses.items()}


def test_every_pooler_is_built_from_its_own_section(tiny_cfg):
    cfg = tiny_cfg(
        *["MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIWarpMax"],
        *["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "PrROIPool"],
        *["MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "ROIAlign"],
        *[
            "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO",
            "2",
            "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION",
            "10",
        ],
    )
    cfg.freeze()
    heads = build_roi_heads(cfg, FPN_SHAPE)
    assert type(heads) is FusedROIHeads and isinstance(heads, StandardROIHeads)
    poolers = [heads.box_pooler, heads.mask_pooler, heads.keypoint_pooler]
    assert [type(p) for p in poolers] == [FusedROIPooler] * 3
    assert [p.pooler_type for p in poolers] == ["ROIWarpMax", "PrROIPool", "ROIAlign"]
    assert [p.sampling_ratio for p in poolers] == [0, 2, 0]
    assert [p.output_size for p in poolers] == [(7, 7), (14, 14), (10, 10)]
    assert poolers[0].scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    assert cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIWarpMax" and cfg.is_frozen()


@ROI_MASK_HEAD_REGISTRY.register()
class SelfPoolingMaskHead(torch.nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.input_shape = input_shape


def test_a_head_that_pools_for_itself_gets_no_pooler(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_MASK_HEAD.POOLER_TYPE", "")
    cfg.MODEL.ROI_MASK_HEAD.NAME = "SelfPoolingMaskHead"
    heads = FusedROIHeads(cfg, FPN_SHAPE)
    assert heads.mask_pooler is None and heads.mask_head.input_shape == FPN_SHAPE


@pytest.mark.parametrize("section", SECTIONS.values())
def test_unknown_pooler_type_is_named(tiny_cfg, section):
    cfg = tiny_cfg(f"MODEL.{section}.POOLER_TYPE", "ROIAlignV3")
    with pytest.raises(ValueError, match="unknown pooler type 'ROIAlignV3'; there are ROIAlign, ROIAlignV2"):
        FusedROIHeads(cfg, FPN_SHAPE)


@pytest.mark.parametrize(
    "pooler_type", ["ROIAlign", "ROIPool", "ROIAlignMax", "ROIWarpAvg", "ROIWarpMax", "PrROIPool"]
)
def test_trains_with_every_pooler_type(tiny_cfg, make_batch, pooler_type):
    opts = [x for section in SECTIONS.values() for x in (f"MODEL.{section}.POOLER_TYPE", pooler_type)]
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NAME", "FusedROIHeads", *opts))
    losses_and_grads(model, make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]]))
    with torch.no_grad():
        assert len(model.eval().inference(make_batch([[0, 0, 9, 9]]))[0]["instances"]) == 5


def test_cascade_equals_the_stock_one(tiny_cfg, make_batch):
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]])
    results = []
    for name in ("FusedCascadeROIHeads", "CascadeROIHeads"):
        torch.manual_seed(0)
        model = build_model(
            tiny_cfg("MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True")
        )
        results.append(losses_and_grads(model, batch))
        with torch.no_grad():
            assert len(model.eval().inference(batch)[0]["instances"]) == 5
        kind = FusedROIPooler if name.startswith("Fused") else ROIPooler
        assert isinstance(model.roi_heads, CascadeROIHeads) and type(model.roi_heads.box_pooler) is kind
    assert issubclass(FusedCascadeROIHeads, CascadeROIHeads)
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-5)
    assert len(results[0]) == 10  # two of the RPN, two per stage, mask, keypoints


@pytest.mark.parametrize("mask_head", ["FCNMaskHead", "MaskRCNNConvUpsampleHead"])
def test_c4_with_a_timm_backbone(tiny_cfg, make_batch, mask_head):
    cfg = tiny_cfg(
        *c4_opts(32),
        *["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.OUT_FEATURES", "['res4']"],
        *["MODEL.ROI_MASK_HEAD.NAME", mask_head, "MODEL.ROI_MASK_HEAD.NUM_CONV", "0"],
    )
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]])
    results = []
    for name in ("FusedRes5ROIHeads", "Res5ROIHeads"):
        cfg.MODEL.ROI_HEADS.NAME = name
        torch.manual_seed(0)
        model = build_model(cfg)
        assert isinstance(model.roi_heads, Res5ROIHeads)
        results.append(losses_and_grads(model, batch))
        with torch.no_grad():
            assert model.eval().inference(batch)[0]["instances"].pred_masks.shape == (5, 64, 80)
    assert results[0] == pytest.approx(results[1], rel=1e-4, abs=1e-5)


def test_c4_says_what_fits_the_backbone(tiny_cfg):
    cfg = tiny_cfg(*c4_opts(64))
    with pytest.raises(ValueError, match="takes 64 channels, and the backbone gives 32: set it to 8"):
        FusedRes5ROIHeads(cfg, {"res4": ShapeSpec(channels=32, stride=16)})


BOXES = {
    "no boxes at all": ([], []),
    "one image without boxes": ([[4, 4, 40, 60]], []),
    "one-pixel boxes": ([[10, 10, 11, 11], [40, 20, 41, 21]], [[0, 0, 1, 1]]),
    "boxes reaching outside the image": ([[-30, -20, 30, 40]], [[60, 40, 120, 100]]),
    "a box outside the image": ([[100, 80, 130, 120]], [[4, 4, 40, 60]]),
}


@pytest.mark.parametrize("boxes_per_image", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("name", ["FusedROIHeads", "FusedCascadeROIHeads"])
def test_hard_ground_truth(tiny_cfg, make_batch, name, boxes_per_image):
    cfg = tiny_cfg(
        *["MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead"],
        *["MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"],
        *["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", str("Cascade" in name)],
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = losses_and_grads(model, make_batch(*boxes_per_image))
    assert {"loss_mask", "loss_keypoint"} <= set(losses)
    assert all(p.grad is not None for p in model.parameters())
    if not any(boxes_per_image):
        assert losses["loss_mask"] == losses["loss_keypoint"] == 0


def test_no_detections(tiny_cfg, make_batch):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.1")
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "FCNMaskHead", "HeatmapKeypointHead"
    with torch.no_grad():
        instances = build_model(cfg).eval()(make_batch([[4, 4, 40, 60]]))[0]["instances"]
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 64, 80) and instances.pred_keypoints.shape == (0, 17, 3)


def test_bfloat16_autocast_step(tiny_cfg, make_batch):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = "FCNMaskHead", "HeatmapKeypointHead"
    model = build_model(cfg)
    dtypes = []
    model.roi_heads.mask_pooler.register_forward_hook(lambda m, inputs, output: dtypes.append(output.dtype))
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]])
    with torch.autocast("cpu", torch.bfloat16):
        losses_and_grads(model, batch)
    assert dtypes == [torch.bfloat16]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert len(model.eval()(batch)[0]["instances"]) == 5


@pytest.mark.parametrize("keypoints", [False, True])
def test_model_scripts(tiny_cfg, make_batch, keypoints):
    from detectron2.export import scripting_with_instances
    from detectron2.structures import Boxes

    cfg = tiny_cfg(
        *["MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone"],
        *["MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead", "MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"],
        *["MODEL.KEYPOINT_ON", str(keypoints)],
    )
    model = build_model(cfg).eval()
    fields = {"proposal_boxes": Boxes, "pred_boxes": Boxes, "pred_classes": torch.Tensor}
    fields |= dict.fromkeys(["objectness_logits", "scores", "pred_masks"], torch.Tensor)
    fields |= dict.fromkeys(["pred_keypoints", "pred_keypoint_heatmaps"] if keypoints else [], torch.Tensor)
    scripted = scripting_with_instances(model, fields)
    inputs = [{"image": item["image"]} for item in make_batch([[4, 4, 40, 60]])]
    with torch.no_grad():
        expected = model.inference(inputs, do_postprocess=False)[0]
        got = scripted.inference(inputs, do_postprocess=False)[0]
    torch.testing.assert_close(got.pred_masks, expected.pred_masks)
    if keypoints:
        torch.testing.assert_close(got.pred_keypoints, expected.pred_keypoints)
