"""Mask heads: losses against detectron2's, inference, empty images, bf16, config, mask scores."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.export import scripting_with_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

import mrcnn_ext
from mrcnn_ext import model_zoo
from mrcnn_ext.layers import MaskIoUNetwork
from mrcnn_ext.modeling import BoundaryMaskHead, FCNMaskHead, MaskScoringHead, MLPMaskHead
from mrcnn_ext.modeling.mask_head.base import MaskTargets

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
K = 3


def scoring(mask_head, **kwargs):
    return MaskScoringHead(mask_head=mask_head, mask_iou=MaskIoUNetwork((8, 14, 14), K, [8], [8]), **kwargs)


# Each takes num_classes, activation, loss_weight, vis_period.
HEADS = {
    "FCN": lambda **kwargs: FCNMaskHead(SHAPE, conv_dims=[16, 16], **kwargs),
    "FCN 56": lambda **kwargs: FCNMaskHead(SHAPE, conv_dims=[16, 16], num_deconv=2, **kwargs),
    "MLP": lambda **kwargs: MLPMaskHead(SHAPE, fc_dims=[16], output_size=14, **kwargs),
    "boundary": lambda **kwargs: BoundaryMaskHead(SHAPE, conv_dims=[16, 16], num_deconv=2, **kwargs),
    "scored boundary": lambda **kwargs: scoring(BoundaryMaskHead(SHAPE, conv_dims=[16, 16], **kwargs)),
    "scored FCN": lambda **kwargs: scoring(FCNMaskHead(SHAPE, conv_dims=[16, 16], **kwargs)),
}
SIDES = {"FCN": 28, "FCN 56": 56, "MLP": 14, "boundary": 28, "scored boundary": 14, "scored FCN": 28}
every_head = pytest.mark.parametrize("name", HEADS)
every_form = pytest.mark.parametrize(
    "form",
    [
        {"num_classes": K},
        {"num_classes": 1},
        {"num_classes": K, "activation": "softmax"},
        {"num_classes": 1, "activation": "softmax"},
    ],
    ids=["sigmoid", "agnostic", "softmax", "softmax agnostic"],
)


def build(name, **kwargs):
    torch.manual_seed(0)
    head = HEADS[name](**{"num_classes": K, **kwargs})
    for parameter in head.parameters():  # biases are zero and predictors almost
        torch.nn.init.normal_(parameter, std=0.1)
    return head


def train(head, x, proposals, iteration=1):
    with EventStorage(iteration) as storage:
        losses = head.train()(x, proposals)
    sum(losses.values()).backward()
    return losses, storage


def detections(count):
    instances = Instances((64, 80), pred_boxes=Boxes(torch.tensor([[4.0, 4, 40, 60]]).repeat(count, 1)))
    instances.pred_classes = torch.arange(count) % K
    instances.scores = torch.linspace(0.9, 0.1, count)
    return instances


@pytest.mark.parametrize("num_classes", [K, 1])
@every_head
def test_sigmoid_loss_is_detectron2s(name, num_classes, proposals):
    head, x = build(name, num_classes=num_classes).double(), torch.randn(3, 8, 14, 14).double()
    losses, storage = train(head, x, proposals())
    with EventStorage() as stock_storage:
        expected = mask_rcnn_loss(head.layers(x)[:, :num_classes], proposals())
    assert losses["loss_mask"].item() == pytest.approx(expected.item(), rel=1e-6)  # targets are float32
    assert storage.latest() == {key: (value, 1) for key, (value, _) in stock_storage.latest().items()}


@every_form
@every_head
def test_trains_in_bf16_and_infers(name, form, proposals):
    head, x = build(name, **form, vis_period=2), torch.randn(3, 8, 14, 14)
    expected, _ = train(head, x, proposals())
    head.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        losses, storage = train(head, x, proposals(), iteration=2)
    assert {key: loss.item() for key, loss in losses.items()} == pytest.approx(
        {key: loss.item() for key, loss in expected.items()}, rel=0.05
    )
    assert all(p.grad.isfinite().all() and p.grad.any() for p in head.parameters())
    assert 0 < storage.latest()["mask_rcnn/accuracy"][0] < 1
    assert [picture.shape for _, picture, _ in storage._vis_data] == [(3, SIDES[name], 2 * SIDES[name])] * 3

    for count in (4, 0):
        images = [detections(count), detections(1)]
        with torch.no_grad():
            head.eval()(torch.randn(count + 1, 8, 14, 14), images)
        assert images[0].pred_masks.shape == (count, 1, SIDES[name], SIDES[name])
        assert ((images[0].pred_masks >= 0) & (images[0].pred_masks <= 1)).all()
        assert len(images[1].pred_masks) == 1


@every_form
@every_head
def test_no_ground_truth_gives_zero_losses_with_a_gradient(name, form, proposals):
    head = build(name, **form)
    keys = train(head, torch.randn(3, 8, 14, 14), proposals())[0].keys()
    head.zero_grad()
    losses, _ = train(head, torch.randn(0, 8, 14, 14), proposals([], []))
    assert losses.keys() == keys and all(loss.item() == 0 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_an_image_without_objects_beside_one_with_some(proposals):
    head, x = build("FCN", activation="softmax"), torch.randn(2, 8, 14, 14)
    box = [[4, 4, 40, 60], [9, 9, 30, 30]]
    losses = [
        train(head, x, proposals(*images))[0]["loss_mask"].item() for images in ([box], [box, []], [[], box])
    ]
    assert losses[0] == losses[1] == losses[2]


def test_softmax_masks_are_probabilities_that_add_up():
    head, x = build("FCN", activation="softmax").eval(), torch.randn(1, 8, 14, 14)
    total = 0
    with torch.no_grad():
        for index in range(K):
            instances = detections(1)
            instances.pred_classes[:] = index
            head(x, [instances])
            total = total + instances.pred_masks
        background = head.layers(x).softmax(dim=1)[:, K:]
    torch.testing.assert_close(total, 1 - background)


def test_boundary_loss_has_its_weight_and_what_it_learns_is_no_mask(proposals):
    x, losses = torch.randn(3, 8, 14, 14), []
    for weight in (1.0, 2.5):
        torch.manual_seed(0)
        head = BoundaryMaskHead(SHAPE, num_classes=K, conv_dims=[16, 16], boundary_loss_weight=weight)
        losses.append({key: loss.item() for key, loss in train(head, x, proposals())[0].items()})
    assert losses[1]["loss_mask"] == losses[0]["loss_mask"]
    assert losses[1]["loss_mask_boundary"] == pytest.approx(2.5 * losses[0]["loss_mask_boundary"])
    assert head.layers(x).shape[1] == K + 1 and head.eval().layers(x).shape[1] == K


def test_boundary_branch_wants_an_even_resolution(tiny_cfg):
    cfg = tiny_cfg(
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", "15", "MODEL.ROI_MASK_HEAD.NAME", "BoundaryMaskHead"
    )
    with pytest.raises(ValueError, match="even height and width, got 15 x 15: set POOLER_RESOLUTION to 28"):
        build_model(cfg)


@pytest.mark.parametrize("head", [BoundaryMaskHead, MLPMaskHead])
def test_heads_that_need_the_size_of_the_features_say_so(head):
    options = {"conv_dims": [8, 8]} if head is BoundaryMaskHead else {}
    with pytest.raises(ValueError, match=f"{head.__name__}: input_shape needs the height and width"):
        head(ShapeSpec(channels=8), num_classes=3, **options)


def test_unknown_activation_names_the_known_ones():
    with pytest.raises(ValueError, match=r"ACTIVATION\) must be one of \('sigmoid', 'softmax'\), got 'relu'"):
        build("FCN", activation="relu")


@pytest.mark.parametrize("kind", ["bitmasks", "polygons"])
def test_whole_area_is_that_of_the_object_in_pixels_of_the_roi(kind):
    instances = Instances((64, 80), gt_classes=torch.tensor([0, 1]))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 50, 50], [10, 10, 50, 50]]))
    square = torch.zeros(64, 80, dtype=torch.bool)
    square[10:50, 10:50] = True
    corners = [10, 10, 50, 10, 50, 50, 10, 50]
    masks = {"bitmasks": BitMasks(torch.stack([square] * 2)), "polygons": PolygonMasks([[corners]] * 2)}
    instances.gt_masks = masks[kind]
    # The RoI of the first is its left half, that of the second twice as wide and high.
    instances.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 30, 50], [-10, -10, 70, 70]]))
    targets = MaskTargets([instances, instances[:0]], 28, torch.device("cpu"))
    torch.testing.assert_close(
        targets.whole_areas(), torch.tensor([2 * 28.0**2, 28.0**2 / 4]), rtol=0.02, atol=0
    )
    assert targets.masks.sum(dim=(1, 2)).tolist() == pytest.approx([28.0**2, 28.0**2 / 4], rel=0.1)


def test_mask_scores_are_the_box_scores_times_the_iou():
    head, x = build("scored FCN").eval(), torch.randn(4, 8, 14, 14)
    images, without = [detections(3), detections(1)], [detections(3), detections(1)]
    for instances in without:
        instances.remove("scores")
    with torch.no_grad():
        head(x, images)
        head(x, without)
        ious = head.mask_iou(x, torch.cat([i.pred_masks for i in images])).clamp(0, 1)
    assert 0 < ious.sum() < 12
    assert without[0].mask_scores.tolist() == pytest.approx([ious[i, i].item() for i in range(3)])
    torch.testing.assert_close(images[0].mask_scores, without[0].mask_scores * images[0].scores)
    assert torch.equal(images[1].scores, detections(1).scores)


def test_mask_iou_loss_falls_when_it_is_trained_on(proposals):
    head, x = build("scored FCN"), torch.randn(3, 8, 14, 14)
    optimizer = torch.optim.Adam(head.mask_iou.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(train(head, x, proposals())[0]["loss_mask_iou"].item())
        optimizer.step()
    assert losses[-1] < 1e-3 < losses[0]


def test_gradient_of_the_iou_loss_does_not_reach_the_masks(proposals):
    head = build("scored FCN", loss_weight=0.0)
    losses, _ = train(head, torch.randn(3, 8, 14, 14), proposals())
    assert losses["loss_mask"] == 0 and losses["loss_mask_iou"] > 0
    assert not any(p.grad.any() for p in head.mask_head.parameters())
    assert all(p.grad.any() for p in head.mask_iou.parameters())


def test_weights_of_the_mask_head_alone_load_into_the_scored_one():
    alone, scored = build("FCN"), build("scored FCN")
    result = scored.load_state_dict(alone.state_dict(), strict=False)
    assert not result.unexpected_keys and all(key.startswith("mask_iou.") for key in result.missing_keys)
    assert torch.equal(scored.mask_head.predictor.weight, alone.predictor.weight)
    scored.load_state_dict(build("scored FCN").state_dict())  # its own too


def test_scoring_wants_a_mask_head_of_ours(tiny_cfg):
    for name in ("MaskRCNNConvUpsampleHead", "MaskScoringHead"):
        with pytest.raises(TypeError, match=r"MASK_IOU.MASK_HEAD\) must be a mask head of mrcnn_ext"):
            MaskScoringHead(tiny_cfg("MODEL.ROI_MASK_HEAD.MASK_IOU.MASK_HEAD", name), SHAPE)


def test_config_sets_every_argument(tiny_cfg):
    section = "MODEL.ROI_MASK_HEAD"
    cfg = tiny_cfg(
        *[f"{section}.ACTIVATION", "softmax", f"{section}.NUM_DECONV", "2", f"{section}.LOSS_WEIGHT", "0.5"],
        *[f"{section}.CONV_DIM", "32", f"{section}.NORM", "GN", f"{section}.NUM_BOUNDARY_CONV", "3"],
        *[f"{section}.BOUNDARY_LOSS_WEIGHT", "0.75", f"{section}.NUM_FC", "3", f"{section}.FC_DIM", "20"],
        *[f"{section}.OUTPUT_SIZE", "14", "VIS_PERIOD", "7"],
        *[f"{section}.MASK_IOU.MASK_HEAD", "MLPMaskHead", f"{section}.MASK_IOU.LOSS_WEIGHT", "0.25"],
        *[f"{section}.MASK_IOU.NUM_CONV", "2", f"{section}.MASK_IOU.CONV_DIM", "12"],
        *[f"{section}.MASK_IOU.NUM_FC", "1", f"{section}.MASK_IOU.FC_DIM", "10"],
    )
    names = ("FCNMaskHead", "BoundaryMaskHead", "MaskScoringHead")
    heads = {name: ROI_MASK_HEAD_REGISTRY.get(name)(cfg, SHAPE) for name in names}
    x = torch.randn(2, 8, 14, 14)
    assert heads["FCNMaskHead"].layers(x).shape == (2, K + 1, 56, 56)
    boundary = heads["BoundaryMaskHead"]
    assert boundary.layers(x).shape == (2, K + 2, 28, 28) and boundary.boundary_loss_weight == 0.75
    assert len(boundary.network.boundary_fcn) == 3 and boundary.network.mask_up[0].out_channels == 32
    assert isinstance(boundary.network.mask_fcn[0].norm, torch.nn.GroupNorm)
    scored = heads["MaskScoringHead"]
    assert type(scored.mask_head) is MLPMaskHead and scored.layers(x).shape == (2, K + 1, 14, 14)
    assert scored.mask_head.fc3.weight.shape == (20, 20)
    assert (scored.loss_weight, scored.mask_head.loss_weight, scored.mask_head.vis_period) == (0.25, 0.5, 7)
    shapes = {name: tuple(p.shape) for name, p in scored.mask_iou.named_parameters() if "weight" in name}
    assert list(shapes.values()) == [(12, 9, 3, 3), (12, 12, 3, 3), (10, 12 * 49), (K, 10)]
    agnostic = tiny_cfg(f"{section}.CLS_AGNOSTIC_MASK", "True", f"{section}.NAME", "MaskScoringHead")
    scored = MaskScoringHead(agnostic, SHAPE)
    assert scored.layers(x).shape == (2, 1, 28, 28) and scored.mask_iou.predictor.out_features == K


@pytest.mark.parametrize("name", ["boundary", "MLP", "scored"])
def test_lazy_config(name):
    heads = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py").model.roi_heads
    heads.num_classes = K
    shape = ShapeSpec(channels=256, height=14, width=14)
    if name == "boundary":
        heads.mask_head._target_ = BoundaryMaskHead
        heads.mask_head.update(conv_dims=[16] * 3, num_deconv=2)
    elif name == "MLP":
        heads.mask_head = L(MLPMaskHead)(input_shape=shape, num_classes="${..num_classes}", fc_dims=[8, 8])
    else:
        # One level deeper in the config.
        heads.mask_head.update(conv_dims=[16] * 3, num_classes="${...num_classes}")
        mask_iou = L(MaskIoUNetwork)(
            input_size=[256, 14, 14], num_classes="${...num_classes}", conv_dims=[8, 8], fc_dims=[16]
        )
        heads.mask_head = L(MaskScoringHead)(mask_head=heads.mask_head, mask_iou=mask_iou, loss_weight=0.5)
    instances = detections(3)
    with torch.no_grad():
        instantiate(heads.mask_head).eval()(torch.randn(3, 256, 14, 14), [instances])
    assert instances.pred_masks.shape == (3, 1, 28, 28)
    assert instances.has("mask_scores") == (name == "scored")


@pytest.mark.parametrize("name", ["BoundaryMaskHead", "MaskScoringHead"])
def test_softmax_model_scripts(tiny_cfg, make_batch, name):
    section = "MODEL.ROI_MASK_HEAD"
    torch.manual_seed(0)
    model = build_model(
        tiny_cfg("MODEL.KEYPOINT_ON", "False", f"{section}.NAME", name, f"{section}.ACTIVATION", "softmax")
    ).eval()
    _widen_predictors(model.roi_heads.mask_head)
    names = ["objectness_logits", "scores", "pred_classes", "pred_masks"]
    names += ["mask_scores"] if name == "MaskScoringHead" else []
    fields = {"proposal_boxes": Boxes, "pred_boxes": Boxes} | dict.fromkeys(names, torch.Tensor)
    inputs = [{"image": item["image"]} for item in make_batch([[4, 4, 40, 60]])]
    with torch.no_grad():
        expected = model.inference(inputs, do_postprocess=False)[0]
        got = scripting_with_instances(model, fields).inference(inputs, do_postprocess=False)[0]
    for field in set(names) - {"objectness_logits"}:
        torch.testing.assert_close(getattr(got, field), expected.get(field))


def _widen_predictors(mask_head):
    """Gives the layers that start close to zero weights that tell masks apart."""
    for key, parameter in mask_head.named_parameters():
        if "mask_iou.predictor" in key:
            torch.nn.init.constant_(parameter, 0.5)
        elif "predictor.weight" in key:
            torch.nn.init.normal_(parameter, std=0.3 / parameter[0].numel() ** 0.5)


@pytest.mark.parametrize("name", ["BoundaryMaskHead", "MLPMaskHead", "MaskScoringHead"])
@pytest.mark.parametrize("bf16", [False, True])
def test_accelerated_model_gives_the_same(tiny_cfg, make_batch, name, bf16):
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.ROI_MASK_HEAD.NAME", name)).eval()
    _widen_predictors(model.roi_heads.mask_head)
    batch = make_batch([[4, 4, 40, 60]])
    with torch.no_grad():
        expected = model.inference(batch, do_postprocess=False)[0]
        fast = mrcnn_ext.accelerate(model, bf16=bf16, masks=False)
        got = fast.inference(batch, detected_instances=[expected], do_postprocess=False)[0]
    rtol, atol = (0, 0.05) if bf16 else (1e-4, 1e-4)
    torch.testing.assert_close(got.pred_masks, expected.pred_masks, rtol=rtol, atol=atol)
    if name == "MaskScoringHead":
        assert (expected.mask_scores > 0).all()
        torch.testing.assert_close(got.mask_scores, expected.mask_scores, rtol=rtol, atol=atol)
