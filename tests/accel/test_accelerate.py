"""accelerate: stock answers, stock parameters, and each step by itself."""

import copy
import io
import logging
import pickle
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext.accel import fused_layers, norms, policy, trained_blocks
from mrcnn_ext.accel.mixed_precision import AutocastNetwork
from mrcnn_ext.modeling import FusedROIPooler, LazyMasks, accelerate
from mrcnn_ext.modeling.fuse_rules import detections
from mrcnn_ext.modeling.fuse_rules.heads import TrainedRPNHead
from mrcnn_ext.ops import winograd
from mrcnn_ext.ops.winograd import winograd_is_available, winograd_weight

pytestmark = pytest.mark.detectron2

C4 = (
    *("MODEL.KEYPOINT_ON", "False", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.RESNETS.OUT_FEATURES", "['res4']", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 32, 64]]"),
)
MODELS = {
    "mask and keypoints": (),
    "bottlenecks": ("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16")
    + ("MODEL.RESNETS.STEM_OUT_CHANNELS", "64")
    + ("MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.RESNETS.STRIDE_IN_1X1", "False"),
    "norms everywhere": (
        "MODEL.FPN.NORM",
        "GN",
        "MODEL.ROI_MASK_HEAD.NORM",
        "BN",
        "MODEL.FPN.FUSE_TYPE",
        "avg",
    )
    + (
        "MODEL.ROI_BOX_HEAD.NORM",
        "GN",
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "1",
        "MODEL.ROI_BOX_HEAD.CONV_DIM",
        "32",
    ),
    "cascade": (
        "MODEL.ROI_HEADS.NAME",
        "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
    "C4": C4,
    "ours": ("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.ROI_HEADS.NAME", "FusedROIHeads")
    + ("MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead", "MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"),
}
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])
STEPS = ("pooler", "channels_last", "convolutions", "winograd", "detections", "keypoints", "masks")


@pytest.fixture
def make_model(tiny_cfg):
    """Makes a model of MODELS with random statistics in its normalisations and spread-out scores."""

    def make(name="mask and keypoints", *opts):
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*MODELS[name], *opts)).eval()
        for key, value in model.state_dict().items():
            if key.endswith(("running_mean", "norm.bias")):
                value.normal_(std=0.1)
            elif key.endswith(("running_var", "norm.weight")):
                value.uniform_(0.8, 1.2)
            elif key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
                value.mul_(5)
        return model

    return make


needs_winograd = pytest.mark.skipif(
    not winograd_is_available(), reason="the compiled operators are not built, or there is no AVX2"
)


@pytest.fixture
def winograd_calls(monkeypatch):
    """What weights were transformed for, one entry each."""
    calls = []

    def spy(weight, int16=False, transposed=False):
        calls.append({"int16": int16, "transposed": transposed})
        return winograd_weight(weight, int16, transposed)

    monkeypatch.setattr(winograd, "winograd_weight", spy)
    monkeypatch.setattr(fused_layers, "winograd_weight", spy)
    return calls


@torch.no_grad()
def infer(model, batch):
    return [output["instances"] for output in model(batch)]


def assert_same(results, expected, tolerance=1e-4):
    for result, stock in zip(results, expected, strict=True):
        assert len(stock) > 0 and result.get_fields().keys() == stock.get_fields().keys()
        assert torch.equal(result.pred_classes, stock.pred_classes)
        boxes = result.pred_boxes.tensor, stock.pred_boxes.tensor
        torch.testing.assert_close(*boxes, rtol=tolerance, atol=10 * tolerance)
        torch.testing.assert_close(result.scores, stock.scores, rtol=tolerance, atol=tolerance)
        differing = np.asarray(result.pred_masks) != np.asarray(stock.pred_masks)
        assert differing.mean() < 10 * tolerance
        if stock.has("pred_keypoints"):
            distance = (result.pred_keypoints - stock.pred_keypoints)[..., :2].abs()
            assert (distance.amax(dim=2) <= 0.5).float().mean() > 0.98


def assert_same_state(state, expected):
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pointwise", [False, True], ids=["oneDNN alone", "with our 1x1"])
def test_float32_answers_and_parameters_are_stock(make_model, make_batch, name, pointwise, monkeypatch):
    model, batch = make_model(name), make_batch(BOXES, BOXES[:1], size=(64, 96))
    state = copy.deepcopy(model.state_dict())
    if pointwise and not policy.float32_kernels_are_available():
        pytest.skip("the compiled operators are not built, or this processor has no AVX2")
    monkeypatch.setattr(policy, "float32_kernels_are_available", lambda: pointwise)
    fast = accelerate(model, bf16=False)
    assert ("1x1 and the stem by mrcnn_ext" in fast.acceleration.steps["convolutions"]) == pointwise
    assert ("float32 by pointwise_conv" in str(fast)) == pointwise
    assert_same(infer(fast, batch), infer(model, batch))
    assert_same_state(fast.state_dict(), state)
    assert_same_state(model.state_dict(), state)
    assert not hasattr(model, "acceleration") and not fast.acceleration.bf16
    assert not any(type(module) is ROIPooler for module in fast.modules())
    assert all(
        type(module) is type(stock) or isinstance(module, (type(stock), FusedROIPooler))
        for (_, module), (_, stock) in zip(fast.named_children(), model.named_children(), strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pointwise", [False, True], ids=["oneDNN alone", "with our 1x1"])
def test_bf16_is_close_and_gives_float32(make_model, make_batch, name, pointwise, monkeypatch):
    model, batch = make_model(name), make_batch(BOXES, size=(64, 96))
    if pointwise and not policy.bf16_kernels_are_available():
        pytest.skip("the compiled operators are not built, or this processor has no AVX512-BF16")
    monkeypatch.setattr(policy, "bf16_kernels_are_available", lambda: pointwise)
    fast = accelerate(model, bf16=True)
    assert ("1x1 and the stem by mrcnn_ext" in fast.acceleration.steps["convolutions"]) == pointwise
    assert fast.acceleration.bf16 and fast.acceleration.steps["bf16"].startswith("on: asked for")
    for result in infer(fast, batch):
        assert len(result) > 0
        assert result.scores.dtype == result.pred_boxes.tensor.dtype == torch.float32
    with torch.no_grad():
        images = model.preprocess_image(batch)
        if name == "bottlenecks":
            assert fast.backbone.bottom_up.stem.runs_in_one_pass(images.tensor) == pointwise
        features, stock_features = fast.backbone(images.tensor), model.backbone(images.tensor)
        for key, value in stock_features.items():
            assert (features[key].float() - value).std() < 0.03 * value.std()
        assert any(value.dtype == torch.bfloat16 for value in features.values())
        known = Instances((64, 96), pred_boxes=batch[0]["instances"].gt_boxes)
        known.pred_classes = batch[0]["instances"].gt_classes
        outputs = [
            m.inference(batch, [copy.deepcopy(known)], do_postprocess=False)[0].get_fields()
            for m in (fast, model)
        ]
    assert outputs[0].keys() == outputs[1].keys() and outputs[0]["pred_masks"].dtype == torch.float32
    torch.testing.assert_close(outputs[0]["pred_masks"], outputs[1]["pred_masks"], rtol=0, atol=0.02)
    if "pred_keypoint_heatmaps" in outputs[1]:
        heatmaps, stock_heatmaps = (output["pred_keypoint_heatmaps"] for output in outputs)
        assert heatmaps.dtype == torch.float32
        assert (heatmaps - stock_heatmaps).std() < 0.05 * stock_heatmaps.std()


def test_bf16_by_the_processor(make_model, monkeypatch):
    model = make_model()
    for has_it in (True, False):
        monkeypatch.setattr(policy, "cpu_has_bf16", lambda has_it=has_it: has_it)
        report = accelerate(model).acceleration
        assert report.bf16 == has_it
        assert report.steps["bf16"].endswith(
            f"this cpu device has {'' if has_it else 'no '}bf16 instructions"
        )


@pytest.mark.parametrize("name", ["mask and keypoints", "ours"])
def test_float16_is_closer_to_stock_than_bf16(make_model, make_batch, name):
    model, batch = make_model(name), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16="float16")
    assert fast.acceleration.steps["bf16"].startswith("on: float16, asked for") and not fast.acceleration.bf16
    assert fast.acceleration.steps["winograd"] == "off: the model is float16"
    with torch.no_grad():
        x = model.preprocess_image(batch).tensor
        for key, value in model.backbone(x).items():
            half = fast.backbone(x)[key]
            assert half.dtype == torch.float16 and (half.float() - value).std() < 0.004 * value.std()
    assert_same(infer(fast, batch), infer(accelerate(model, bf16=False), batch), tolerance=1e-2)


def test_which_half_precision_a_gpu_gets(monkeypatch):
    cuda, has_none = torch.device("cuda"), "this cuda device has no bf16 instructions"
    for capability, half in (((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), None)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, of=capability: of)
        found, why = policy.choose_half("auto", cuda, torch.float32)
        assert found == half
        assert half or why == f'{has_none}; bf16="float16" computes in float16'
    assert policy.choose_half("float16", cuda, torch.float32) == (torch.float16, "float16, asked for")


@pytest.mark.parametrize("step", STEPS)
def test_each_step_can_be_left_out_and_works_alone(make_model, make_batch, step):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    expected = infer(model, batch)
    without = accelerate(model, bf16=False, **{step: False})
    assert without.acceleration.steps[step] == "off"
    assert_same(infer(without, batch), expected)
    (rounded,) = infer(accelerate(model, bf16=True, **{step: False}), batch)
    assert len(rounded) > 0 and rounded.pred_boxes.tensor.dtype == torch.float32
    wanted = ["convolutions", "winograd"] if step == "winograd" else [step]  # one of the other
    alone = accelerate(model, bf16=False, **{other: False for other in STEPS if other not in wanted})
    assert [name for name, what in alone.acceleration.steps.items() if not what.startswith("off")] == wanted
    assert_same(infer(alone, batch), expected)


def test_bf16_alone_is_autocast(make_model, make_batch):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16=True, convolutions=False, keypoints=False)
    assert "by autocast: backbone" in fast.acceleration.steps["bf16"]
    (result,) = infer(fast, batch)
    assert len(result) > 0 and result.scores.dtype == torch.float32


def test_without_onednn_it_says_so_and_gives_the_same(make_model, make_batch, monkeypatch, caplog):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with caplog.at_level(logging.WARNING):
        fast = accelerate(model, bf16=False)
    assert "no oneDNN convolutions" in caplog.text and "oneDNN" not in fast.acceleration.steps["convolutions"]
    assert_same(infer(fast, batch), infer(model, batch))


def test_weights_loaded_afterwards_take_effect(make_model, make_batch):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16=False)
    before = infer(fast, batch)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not key.endswith("running_var"):
                value.mul_(1.05)
    fast.load_state_dict(model.state_dict())
    assert_same(infer(fast, batch), infer(model, batch))
    assert not torch.allclose(infer(fast, batch)[0].scores, before[0].scores, atol=1e-3)
    with torch.no_grad():
        for m in (fast, model):
            m.backbone.bottom_up.res2[0].conv1.norm.bias.add_(0.5)
    assert_same(infer(fast, batch), infer(model, batch))


@pytest.mark.parametrize("bf16", [False, True])
def test_inference_mode(make_model, make_batch, bf16):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    expected = infer(accelerate(model, bf16=bf16), batch)
    with torch.inference_mode():
        inside = accelerate(model, bf16=bf16)
        assert_same([output["instances"] for output in inside(batch)], expected)
        outside = accelerate(model, bf16=bf16, masks=False)
    assert_same(infer(inside, batch), expected)
    outside = accelerate(model, bf16=bf16, masks=False)
    with torch.inference_mode():
        outside(batch)
    # Gradients are on here, and masks=False leaves them so.
    assert_same([output["instances"] for output in outside(batch)], expected)


class _TwiceAsMuch(torch.nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


@pytest.mark.parametrize("make", [_TwiceAsMuch, partial(torch.nn.Conv2d, padding_mode="reflect")])
def test_convolutions_that_are_not_plain_stay_as_they_are(make_model, make_batch, make):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    plain = model.backbone.fpn_output2
    other = make(plain.in_channels, plain.out_channels, 3, padding=1)
    other.load_state_dict(plain.state_dict())
    model.backbone.fpn_output2 = model.backbone.output_convs[-1] = other
    x = model.preprocess_image(batch).tensor
    with torch.no_grad():
        for fast in (accelerate(model, bf16=False), accelerate(model, training=True).eval()):
            for ours, stock in zip(fast.backbone(x).values(), model.backbone(x).values(), strict=True):
                torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
def test_what_hooks_of_blocks_see_is_not_written_over(make_model, make_batch, bf16):
    model, batch = make_model("bottlenecks"), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16=bf16)
    kept, copies = [], []

    def keep(module, args, output):
        kept.extend([args[0], output])
        copies.extend([args[0].clone(), output.clone()])

    for block in fast.backbone.bottom_up.res4:
        block.register_forward_hook(keep)
    infer(fast, batch)
    assert len(kept) == 12 and all(map(torch.equal, kept, copies))


def test_poolers_that_heads_share(make_model, make_batch):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    model.roi_heads.keypoint_pooler = model.roi_heads.mask_pooler
    fast = accelerate(model, bf16=False)
    assert fast.roi_heads.keypoint_pooler is fast.roi_heads.mask_pooler
    assert fast.acceleration.steps["pooler"] == "2 replaced"
    assert_same(infer(fast, batch), infer(model, batch))


def test_the_report_of_a_cascade_claims_no_detections(make_model):
    assert accelerate(make_model("cascade")).acceleration.steps["detections"] == "proposals"


def test_networks_by_autocast_take_and_give_what_they_like():
    class Head(torch.nn.Linear):
        def forward(self, x, *, scale):
            outputs = namedtuple("Outputs", "scores name")
            return outputs(scale * super().forward(x["features"]), "head")

    head = Head(4, 4).eval()
    result = AutocastNetwork(head, float32=True)({"features": torch.ones(2, 4)}, scale=2)
    assert result.scores.dtype == torch.float32 and result.name == "head"
    assert torch.equal(result.scores, result.scores.bfloat16().float())


def test_accelerating_twice_is_accelerating_once(make_model, make_batch):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    once = accelerate(model, bf16=True)
    twice = accelerate(once, bf16=True)
    assert (
        twice is not once
        and twice.acceleration.steps["convolutions"] == once.acceleration.steps["convolutions"]
    )
    assert [type(m) for m in twice.modules()] == [type(m) for m in once.modules()]
    for a, b in zip(infer(once, batch), infer(twice, batch), strict=True):
        assert torch.equal(a.scores, b.scores)
    # What is asked for last counts.
    assert_same(infer(accelerate(once, bf16=False), batch), infer(model, batch))
    in_place = accelerate(model, bf16=False, copy=False)
    assert in_place is model and accelerate(model, bf16=False, copy=False) is model


def test_it_can_be_copied_pickled_and_trained(make_model, make_batch):
    batch = make_batch(BOXES, size=(64, 96))
    fast = accelerate(make_model(), bf16=False)
    expected = infer(fast, batch)
    assert_same(infer(copy.deepcopy(fast), batch), expected)
    assert_same(infer(pickle.loads(pickle.dumps(fast)), batch), expected)
    saved = io.BytesIO()
    torch.save(fast.state_dict(), saved)

    stock = make_model().train()
    losses = []
    for model in (fast.train(), stock):
        torch.manual_seed(1)
        with EventStorage():
            losses.append({key: loss.item() for key, loss in model(batch).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-5)


def test_for_training_pooler_layout_and_convolutions_change(make_model, make_batch):
    model = make_model().train()
    fast = accelerate(model)
    assert fast.training and str(fast.acceleration).startswith("Accelerated for training:")
    assert list(fast.acceleration.steps) == ["pooler", "channels_last", "convolutions", "winograd", "targets"]
    assert type(fast) is type(model) and isinstance(fast.roi_heads.box_pooler, FusedROIPooler)
    assert fast.backbone.fpn_output2.weight.is_contiguous(memory_format=torch.channels_last)
    assert accelerate(make_model(), training=True).training
    assert not accelerate(model, training=False).training
    with EventStorage():
        losses = fast(make_batch(BOXES, size=(64, 96)))
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in fast.parameters())


def train_once(model, batch, autocast):
    torch.manual_seed(1)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model(batch)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {key: loss.item() for key, loss in losses.items()}, grads


@needs_winograd
@pytest.mark.parametrize("name", ["mask and keypoints", "bottlenecks", "norms everywhere", "ours"])
def test_training_in_float32_has_stock_losses_and_gradients(make_model, make_batch, name, winograd_calls):
    batch = make_batch(BOXES, size=(64, 96))
    stock = make_model(name).train()
    fast = accelerate(stock)
    assert_same_state(fast.state_dict(), stock.state_dict())
    expected, expected_grads = train_once(stock, batch, False)
    assert not winograd_calls
    losses, grads = train_once(fast, batch, False)
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert grads.keys() == expected_grads.keys()
    for key, grad in grads.items():
        # One ReLU that rounding turns on or off is a hundredth of so small a model.
        assert (grad - expected_grads[key]).norm() < 0.02 * expected_grads[key].norm() + 1e-3, key
    forward_and_backward = {(call["transposed"], call["int16"]) for call in winograd_calls}
    assert forward_and_backward == {(False, False), (True, False)}


@needs_winograd
def test_what_trains_of_detectron2(make_model, make_batch, monkeypatch):
    fast = accelerate(make_model("bottlenecks").train())
    blocks = [module for module in fast.backbone.modules() if isinstance(module, trained_blocks.TrainedBlock)]
    assert blocks and isinstance(fast.proposal_generator.rpn_head, TrainedRPNHead)
    steps = fast.acceleration.steps["convolutions"]
    assert (
        f"{len(blocks)} residual blocks and 1 stems fused, the RPN head backward at sampled anchors" in steps
    )
    # A frozen stem is one pass; one that trains is the original's.
    calls, once = [], trained_blocks.stem_conv_pool
    monkeypatch.setattr(trained_blocks, "stem_conv_pool", lambda *args: calls.append(args) or once(*args))
    batch = make_batch(BOXES, size=(64, 96))
    stem = fast.backbone.bottom_up.stem
    for wanted, count in ((False, 1), (True, 1)):
        stem.requires_grad_(wanted)
        _, grads = train_once(fast, batch, False)
        assert len(calls) == count and any("stem" in name for name in grads) == wanted
        fast.zero_grad()
    restored = accelerate(fast, training=True, convolutions=False, winograd=False)
    assert not any(isinstance(module, trained_blocks.TrainedBlock) for module in restored.modules())


@needs_winograd
def test_training_under_autocast_multiplies_int16(make_model, make_batch, winograd_calls):
    batch = make_batch(BOXES, size=(64, 96))
    stock = make_model().train()
    expected, _ = train_once(stock, batch, False)
    losses, grads = train_once(accelerate(stock), batch, True)
    assert losses == pytest.approx(expected, rel=0.1)
    assert all(grad.isfinite().all() for grad in grads.values())
    assert winograd_calls and all(call["int16"] for call in winograd_calls)
    winograd_calls.clear()
    train_once(accelerate(stock, winograd="float32"), batch, True)
    assert winograd_calls and not any(call["int16"] for call in winograd_calls)
    winograd_calls.clear()
    train_once(accelerate(stock, winograd=False), batch, True)
    assert not winograd_calls


@needs_winograd
@pytest.mark.parametrize("bf16, arithmetic", [(False, "float32"), (True, "int16")])
def test_winograd_multiplies_what_suits_the_precision(
    make_model, make_batch, monkeypatch, bf16, arithmetic, winograd_calls
):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16=bf16)
    assert fast.acceleration.steps["winograd"] == f"3x3 convolutions multiply {arithmetic}"
    infer(fast, batch)
    assert winograd_calls and {call["int16"] for call in winograd_calls} == {arithmetic == "int16"}
    count = len(winograd_calls)
    infer(fast, batch)
    assert len(winograd_calls) == count  # weights are transformed once
    for asked in ("int16", "float32"):
        report = accelerate(model, bf16=bf16, winograd=asked).acceleration
        assert report.steps["winograd"].endswith(asked)
    monkeypatch.setattr(policy, "cpu_has_amx", lambda: True)
    report = accelerate(model, bf16=bf16).acceleration
    assert report.steps["winograd"].endswith("AMX is faster" if bf16 else "float32")
    monkeypatch.setattr(policy, "winograd_is_available", lambda: False)
    assert "it needs the compiled operators" in accelerate(model, bf16=bf16).acceleration.steps["winograd"]
    with pytest.raises(ValueError, match="winograd='int16' cannot be had: it needs the compiled operators"):
        accelerate(model, winograd="int16")


@needs_winograd
def test_int16_with_float32_maps_is_close_to_stock(make_model, make_batch):
    model, batch = make_model(), make_batch(BOXES, size=(64, 96))
    fast = accelerate(model, bf16=False, winograd="int16")
    with torch.no_grad():
        x = model.preprocess_image(batch).tensor
        for ours, stock in zip(fast.backbone(x).values(), model.backbone(x).values(), strict=True):
            assert (ours - stock).std() < 2e-3 * stock.std()


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("name", ["mask and keypoints", "ours"])
def test_masks_of_the_predicted_class_are_stock_ones(make_model, make_batch, name, agnostic):
    model = make_model(name, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", str(agnostic))
    with torch.no_grad():  # a new head's masks are all about 0.5
        model.roi_heads.mask_head.predictor.weight.normal_()
        model.roi_heads.mask_head.predictor.bias.normal_()
    batch = make_batch(BOXES * 8, size=(64, 96))  # more RoIs than are taken at a time
    known = Instances((64, 96), pred_boxes=batch[0]["instances"].gt_boxes)
    known.pred_classes = batch[0]["instances"].gt_classes
    masks = [
        m.inference(batch, [copy.deepcopy(known)], do_postprocess=False)[0].pred_masks.detach()
        for m in (accelerate(model, bf16=False), model)
    ]
    assert masks[0].shape == (16, 1, 28, 28)
    torch.testing.assert_close(masks[0], masks[1], rtol=0, atol=1e-4)


def test_lazy_masks_are_those_pasted(make_model, make_batch):
    batch = make_batch(BOXES, size=(64, 96))
    batch[0].update(height=100, width=150)  # of the original image
    model = make_model()
    lazy, pasted = (infer(accelerate(model, bf16=False, masks=masks), batch)[0] for masks in ("lazy", True))
    assert isinstance(lazy.pred_masks, LazyMasks) and pasted.pred_masks.shape[1:] == (100, 150)
    assert torch.equal(lazy.pred_masks.tensor, pasted.pred_masks) and pasted.pred_masks.any()


def test_test_time_augmentation(make_model, make_batch, tiny_cfg):
    cfg = tiny_cfg("MODEL.KEYPOINT_ON", "False", "TEST.AUG.MIN_SIZES", "(64,)", "TEST.AUG.MAX_SIZE", "96")
    model = make_model("mask and keypoints", "MODEL.KEYPOINT_ON", "False")
    batch = make_batch(BOXES, size=(64, 96))
    fast, stock = (GeneralizedRCNNWithTTA(cfg, m) for m in (accelerate(model, bf16=False), model))
    assert_same(infer(fast, batch), infer(stock, batch))


@pytest.mark.parametrize(
    "opts", [("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"), ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "1000")]
)
def test_an_image_without_detections_or_proposals(make_model, make_batch, opts):
    batch = make_batch(BOXES, BOXES, size=(64, 96))
    for bf16 in (False, True):
        fast = accelerate(make_model("mask and keypoints", *opts), bf16=bf16)
        for result in infer(fast, batch):
            assert len(result) == 0 and result.pred_keypoints.shape == (0, 17, 3)
            assert result.pred_masks.shape == (0, 64, 96)


@pytest.mark.parametrize("kind, aligned", [("ROIAlign", False), ("ROIAlignV2", True), ("ROIPool", False)])
def test_the_pooler_keeps_its_arguments(make_model, kind, aligned):
    model = make_model()
    model.roi_heads.box_pooler = ROIPooler((7, 7), [1 / 4, 1 / 8], 2, kind, 100, 3)
    pooler = accelerate(model, bf16=False).roi_heads.box_pooler
    assert isinstance(pooler, FusedROIPooler)
    assert (pooler.pooler_type, pooler.output_size, pooler.scales) == (kind, (7, 7), [1 / 4, 1 / 8])
    assert (pooler.canonical_box_size, pooler.canonical_level) == (100.0, 3)
    assert pooler.aligned == aligned and (kind == "ROIPool" or pooler.sampling_ratio == 2)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("topk", [10, 100, 0, -1])
def test_detections_equal_stock_with_many_boxes(agnostic, topk):
    fast_rcnn = pytest.importorskip("detectron2.modeling.roi_heads.fast_rcnn")
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 1 if agnostic else 20, 2, generator=generator) * 60
    sides = 20 + 30 * torch.rand(corners.shape, generator=generator)
    boxes = torch.cat([corners, corners + sides], dim=2).flatten(1)
    scores = torch.rand(200, 21, generator=generator)
    boxes[3, 2] = torch.inf
    args = (boxes, scores, (90, 80), 0.02, 0.5, topk)
    expected, expected_rows = fast_rcnn.fast_rcnn_inference_single_image(*args)
    result, rows = detections._detections(*args)
    assert torch.equal(result.scores, expected.scores) and torch.equal(rows, expected_rows)
    assert torch.equal(result.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(result.pred_classes, expected.pred_classes)


def test_others_are_refused_by_name(make_model, tiny_cfg):
    retinanet = build_model(
        tiny_cfg(
            *(
                "MODEL.META_ARCHITECTURE",
                "RetinaNet",
                "MODEL.BACKBONE.NAME",
                "build_retinanet_resnet_fpn_backbone",
            ),
            *("MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"),
        )
    )
    with pytest.raises(TypeError, match="GeneralizedRCNN .*, got RetinaNet"):
        accelerate(retinanet)
    with pytest.raises(ValueError, match='bf16 must be True, False, "auto" or "float16", got \'yes\''):
        accelerate(make_model(), bf16="yes")
    with pytest.raises(ValueError, match='winograd must be "auto", "float32", "int16" or False, got 8'):
        accelerate(make_model(), winograd=8)
    with pytest.raises(ValueError, match='masks must be True, False, "auto" or "lazy", got \'rle\''):
        accelerate(make_model(), masks="rle")


def test_a_model_that_is_refused_is_as_it_was(make_model, monkeypatch):
    model = make_model().train()
    classes = [type(module) for module in model.modules()]
    monkeypatch.setattr(policy, "winograd_is_available", lambda: False)
    with pytest.raises(ValueError, match="winograd='int16' cannot be had: it needs the compiled"):
        accelerate(model, winograd="int16", training=False, copy=False)
    with pytest.raises(ValueError, match="winograd='float32' cannot be had: convolutions is False"):
        accelerate(model, winograd="float32", convolutions=False, training=False, copy=False)

    class Panoptic(type(model)):
        def inference(self, batched_inputs, *args):
            return super().inference(batched_inputs, *args)

    model.__class__ = Panoptic
    with pytest.raises(ValueError, match='masks="lazy": Panoptic has post-processing of its own'):
        accelerate(model, masks="lazy", training=False, copy=False)
    assert [type(module) for module in model.modules()][1:] == classes[1:]
    assert model.training and not hasattr(model, "acceleration")


def test_a_subclass_of_a_normalisation_is_not_folded():
    class Activated(torch.nn.BatchNorm2d):
        pass

    assert norms.foldable(torch.nn.BatchNorm2d(3)) and not norms.foldable(Activated(3))
    assert not norms.foldable(torch.nn.BatchNorm2d(3, track_running_stats=False))


def test_the_report_names_every_step(make_model):
    text = str(accelerate(make_model("ours"), bf16=True).acceleration)
    assert all(step in text for step in (*STEPS, "bf16"))
    assert (
        "backbone.bottom_up, backbone," in text and "roi_heads.mask_head" in text and "autocast" not in text
    )
