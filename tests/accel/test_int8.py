"""Detectors with 1x1 and linear layers in int8: calibration, its file, and what is left out."""

import copy
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedConv2d, FusedLinear, Int8Calibration, KernelPolicy, cpu_features, int8
from mrcnn_ext.accel.int8 import apply_int8, calibrate_int8, state_digest
from mrcnn_ext.accel.int8_ranges import Int8Range, Observer
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.modeling.fuse_rules import calibration as calibration_images
from mrcnn_ext.modeling.fuse_rules.calibration import images_of_dataset
from mrcnn_ext.ops.winograd import winograd_int8_is_available

needs_it = pytest.mark.skipif(
    not (cpu_features.int8_kernels_are_available() and cpu_features.float32_kernels_are_available()),
    reason="the compiled operators are not built, or there is no AVX2",
)
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


@pytest.fixture(scope="module")
def _models():
    return {}


@pytest.fixture
def model(tiny_cfg, make_batch, _models):
    """A small model of bottlenecks with statistics of a picture in its normalisations."""
    if not _models:
        torch.manual_seed(0)
        cfg = tiny_cfg(
            "MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.KEYPOINT_ON", "False"
        )
        model = build_model(cfg).eval()
        calibrate(model, make_batch(BOXES, size=(128, 128)))
        with torch.no_grad():  # as in trained ones, blocks add little; of random ones errors grow
            for name, value in model.named_parameters():
                if name.endswith("conv3.norm.weight"):
                    value.mul_(0.2)
        _models["model"] = model
    return _models["model"]


@pytest.fixture
def inputs(make_batch):
    return [make_batch(BOXES, size=(96, 128)) for _ in range(2)]


@pytest.fixture
def fast(model, inputs, _models):
    """The same accelerated in float32 and int8."""
    if "fast" not in _models:
        _models["fast"] = accelerate(model, bf16=False, int8=inputs)
    return _models["fast"]


def features(model, inputs):
    with torch.no_grad():
        return model.backbone(model.preprocess_image(inputs[0]).tensor)


def relative(result, expected):
    return ((result.float() - expected.float()).square().mean().sqrt() / expected.float().std()).item()


@needs_it
def test_layers_are_in_int8_and_close(model, fast, inputs):
    calibration = fast.acceleration.int8
    assert fast.acceleration.steps["int8"].startswith(f"{len(calibration.errors)} layers")
    in_int8 = {name for name, module in fast.named_modules() if getattr(module, "int8", None) is not None}
    assert in_int8 == set(calibration.layers)
    by_winograd = {name for name, module in fast.named_modules() if getattr(module, "int8_winograd", False)}
    assert by_winograd == set(calibration.winograd) and not by_winograd & in_int8
    for name in ("backbone.bottom_up.res3.0.conv1", "backbone.fpn_lateral3", "roi_heads.box_head.fc1"):
        assert name in in_int8
        assert "int8 by int8_pointwise_conv" in str(fast.get_submodule(name))
    assert "roi_heads.mask_head.deconv" in in_int8
    assert not any("predictor" in name or "rpn" in name for name in in_int8)
    assert all(0 < layer.error < 0.1 for layer in calibration.layers.values())
    assert list(fast.state_dict()) == list(model.state_dict())
    plain, expected = accelerate(model, bf16=False), features(model, inputs)
    for name, value in features(fast, inputs).items():
        error = relative(value, expected[name])
        assert 1e-4 < error < 0.2 and relative(features(plain, inputs)[name], expected[name]) < 1e-4
    assert 1e-4 < calibration.networks["backbone"] < 0.2
    with torch.no_grad():
        result = fast(inputs[0])[0]["instances"]
    assert len(result) > 0 and result.scores.isfinite().all()


@needs_it
def test_a_registered_dataset_calibrates(model, tmp_path, monkeypatch):
    name = "int8_calibration_test"
    generator = np.random.default_rng(0)
    for k in range(34):
        picture = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture[0, 0, 0] = k
        Image.fromarray(picture).save(tmp_path / f"{k}.png")
    records = [{"file_name": str(tmp_path / f"{k}.png"), "height": 24, "width": 32} for k in range(34)]
    monkeypatch.setattr(calibration_images, "_SIZE", (96, 128))
    monkeypatch.setitem(DatasetCatalog.data, name, lambda: records)
    pictures = [batch[0]["image"] for batch in images_of_dataset(model, name)]
    assert len(pictures) == 16 and all(picture.shape == (3, 96, 128) for picture in pictures)
    assert [int(picture[2, 0, 0]) for picture in pictures] == [k * 34 // 16 for k in range(16)]  # BGR
    del records[2:]
    assert accelerate(model, int8=name).acceleration.int8.layers
    with pytest.raises(ValueError, match="int8: 'nothing' is neither the file .* nor a registered dataset"):
        accelerate(model, int8="nothing")
    records.clear()
    with pytest.raises(ValueError, match=f"dataset '{name}' has no images to calibrate with"):
        accelerate(model, int8=name)


@needs_it
def test_int8_bound(model, fast, inputs):
    bound = fast.acceleration.int8.networks["backbone"] / 2
    bounded = accelerate(model, bf16=False, int8=inputs, int8_bound=bound).acceleration.int8
    assert bounded.errors.keys() < fast.acceleration.int8.errors.keys()
    for bad in (0, -1.0, 2, float("nan")):
        with pytest.raises(ValueError, match="int8_bound must be above 0 and at most 1, got"):
            accelerate(model, int8=inputs, int8_bound=bad)


@needs_it
def test_a_calibration_is_kept_for_its_weights_alone(model, fast, inputs, tmp_path):
    path = tmp_path / "int8.json"
    calibration = fast.acceleration.int8
    calibration.save(path)
    assert Int8Calibration.load(path) == calibration and list(tmp_path.iterdir()) == [path]
    for given in (path, str(path), calibration):
        again = accelerate(model, bf16=False, int8=given)
        for name, value in features(again, inputs).items():
            assert torch.equal(value, features(fast, inputs)[name])
    assert accelerate(fast, bf16=False).acceleration.int8 is None  # as is asked for now
    assert copy.deepcopy(fast).acceleration.int8 == calibration
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.backbone.fpn_lateral3.bias[0] += 1
    for given, what in ((path, str(path)), (calibration, "the calibration")):
        with pytest.raises(ValueError, match=f"{what} was made for other weights; calibrate"):
            accelerate(other, bf16=False, int8=given)
    moved = copy.deepcopy(calibration)
    moved.layers["backbone.nowhere"] = next(iter(calibration.layers.values()))
    with pytest.raises(ValueError, match="has backbone.nowhere, which is no layer that could be in int8"):
        accelerate(model, bf16=False, int8=moved)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "it is not JSON"),
        ("[]", '"format" is not'),
        ('{"format": "something else"}', '"format" is not'),
        ({"version": 2}, "of version 2 .* reads 1"),
        ({"layers": {"a": {"scale": 1.0}}}, "damaged .*zero_point"),
        (
            {"layers": {"a": {"scale": float("inf"), "zero_point": 1, "error": 0.0}}},
            "scale or zero_point of a",
        ),
        ({"layers": {"a": {"scale": 1.0, "zero_point": 12.7, "error": 0.0}}}, "scale or zero_point of a"),
        ({"layers": {"a": {"scale": -1.0, "zero_point": 0, "error": 0.0}}}, "of a is out of range"),
        ({"layers": None}, "damaged"),
    ],
)
def test_files_that_are_no_calibration(tmp_path, text, message):
    path = tmp_path / "int8.json"
    Int8Calibration("0", {}).save(path)
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{path} is .*{message}"):
        Int8Calibration.load(path)


def test_what_cannot_be_had_is_said(model, inputs, monkeypatch):
    with pytest.raises(ValueError, match="int8 cannot be had: it is for inference"):
        accelerate(model, training=True, int8=inputs)
    with pytest.raises(ValueError, match="int8 cannot be had: convolutions is False"):
        accelerate(model, convolutions=False, int8=inputs)
    monkeypatch.setattr(int8, "int8_kernels_are_available", lambda: False)
    with pytest.raises(ValueError, match="int8 cannot be had: .* a processor with AVX2"):
        accelerate(model, int8=inputs)
    monkeypatch.setattr(int8, "int8_kernels_are_available", lambda: True)
    with pytest.raises(TypeError, match="int8 must be a list of inputs, .*, got int"):
        accelerate(model, int8=3)
    with pytest.raises(ValueError, match=r"cannot be called with input 0 .* a dict .*\[\[{\"image\""):
        accelerate(model, int8=list(inputs[0]))
    with pytest.raises(ValueError, match="cannot be called with input 1 .*, a list"):
        accelerate(model, int8=[inputs[0], []])
    broken = [[{**inputs[0][0], "image": inputs[0][0]["image"].float().fill_(float("nan"))}]]
    with pytest.raises(ValueError, match="not finite: is there one in the inputs"):
        accelerate(model, int8=broken)
    with pytest.raises(ValueError, match="no inputs to calibrate with"):
        accelerate(model, int8=[])


@needs_it
@pytest.mark.parametrize("given", ["inputs", "calibration"])
def test_a_model_that_does_not_take_it_is_as_it_was(model, fast, inputs, given):
    mine, expected = copy.deepcopy(model), features(model, inputs)
    calibration = copy.deepcopy(fast.acceleration.int8)
    calibration.layers["backbone.nowhere"] = next(iter(calibration.layers.values()))
    with pytest.raises(ValueError, match="int8: the (model cannot be called|calibration has)"):
        accelerate(mine, copy=False, bf16=False, int8={"inputs": [3], "calibration": calibration}[given])
    assert str(mine) == str(model) and not hasattr(mine, "acceleration")
    torch.testing.assert_close(features(mine, inputs), expected, rtol=1e-4, atol=1e-4)  # channels-last now


@needs_it
def test_other_weights_end_it(model, fast, inputs, caplog):
    copied = pickle.loads(pickle.dumps(fast))
    copied.load_state_dict(model.state_dict())
    assert copied.acceleration.int8 is not None and not caplog.text
    torch.testing.assert_close(features(copied, inputs), features(fast, inputs), rtol=0, atol=0)
    other = copy.deepcopy(model)
    with torch.no_grad():  # three times the range everywhere
        for value in (
            other.backbone.bottom_up.stem.conv1.norm.weight,
            other.backbone.bottom_up.stem.conv1.norm.bias,
        ):
            value.mul_(3)
    again = accelerate(copied, copy=False, bf16=False, int8=fast.acceleration.int8)
    again.load_state_dict(other.state_dict())
    assert caplog.text.count("not calibrated with, so that it is not in int8 any more") == 1
    assert again.acceleration.int8 is None and again.acceleration.steps["int8"].startswith("off: weights")
    expected = features(accelerate(other, bf16=False), inputs)
    torch.testing.assert_close(features(again, inputs), expected, rtol=0, atol=0)


@needs_it
def test_sensitive_layers_are_left_out(fast, inputs, monkeypatch):
    """Of a float32 model in place, with bounds that are not kept otherwise."""
    model = accelerate(fast, bf16=False)
    networks = [("backbone", False), ("roi_heads.box_head", True)]
    all_layers = set(fast.acceleration.int8.errors)
    strict = calibrate_int8(model, networks, inputs, layer_bound=1e-6)
    assert not strict.errors and "its error would be" in strict.left_out["backbone.fpn_lateral3"]
    of_one = fast.acceleration.int8.layers["roi_heads.box_head.fc1"].error
    bounded = calibrate_int8(model, networks, inputs, layer_bound=of_one)
    assert all(error <= of_one for error in bounded.errors.values())
    assert "roi_heads.box_head.fc1" in bounded.layers
    monkeypatch.setattr(int8, "_NOISE", 0.0)
    bound = fast.acceleration.int8.networks["backbone"] / 2
    bounded = calibrate_int8(model, networks, inputs, bound=bound)
    assert bounded.errors.keys() < all_layers
    assert any("backbone's error was" in why for why in bounded.left_out.values())
    assert all(error <= bound for error in bounded.networks.values())
    apply_int8(model, bounded)
    expected = features(accelerate(fast, bf16=False), inputs)
    errors = [relative(value, expected[name]) for name, value in features(model, inputs).items()]
    assert max(errors) == pytest.approx(bounded.networks["backbone"], rel=0.5)


@needs_it
@pytest.mark.skipif(not winograd_int8_is_available(), reason="there is no AVX512-VNNI")
def test_3x3_convolutions_in_int8(model, fast, inputs, monkeypatch, tmp_path):
    calibration = fast.acceleration.int8
    for name in ("backbone.fpn_output2", "proposal_generator.rpn_head.conv", "roi_heads.mask_head.mask_fcn1"):
        assert 1e-4 < calibration.winograd[name] < 0.1
        assert "int8 by winograd_conv3x3, int8" in str(fast.get_submodule(name))
    # They go first where a network may not be as wrong as all together make it.
    plain = accelerate(fast, bf16=False)
    monkeypatch.setattr(int8, "_NOISE", 0.0)
    bound = 0.9 * calibration.networks["backbone"]
    bounded = calibrate_int8(plain, [("backbone", False)], inputs, bound=bound)
    assert bounded.layers.keys() == calibration.layers.keys() and bounded.networks["backbone"] <= bound
    assert bounded.winograd.keys() < calibration.winograd.keys()

    bounded.save(tmp_path / "int8.json")
    assert Int8Calibration.load(tmp_path / "int8.json") == bounded
    value = json.loads((tmp_path / "int8.json").read_text())
    del value["winograd"]  # as files were before there were such layers
    (tmp_path / "old.json").write_text(json.dumps(value))
    old = Int8Calibration.load(tmp_path / "old.json")
    assert old.layers == bounded.layers and not old.winograd

    # A calibration that was made elsewhere serves a processor without these instructions.
    monkeypatch.setattr(int8, "winograd_int8_is_available", lambda: False)
    said = apply_int8(plain, calibration)
    assert said.endswith(f"; {len(calibration.winograd)} of 3x3 not without AVX512-VNNI")
    assert "float32 by winograd_conv3x3, float32" in str(plain.get_submodule("backbone.fpn_output2"))
    assert plain.get_submodule("backbone.fpn_lateral2").int8 is not None
    wrong = copy.deepcopy(calibration)
    wrong.winograd["backbone.fpn_lateral2"] = 0.01
    with pytest.raises(
        ValueError, match="has backbone.fpn_lateral2, which is no layer that could be in int8"
    ):
        apply_int8(plain, wrong)


@needs_it
def test_layers_by_themselves():
    """Of each kind, a norm folded, against the same in float64."""
    torch.manual_seed(0)
    policy = KernelPolicy(float32_kernels=True)
    conv = nn.Conv2d(24, 40, 1, stride=2)
    linear = nn.Linear(24, 40)
    x = torch.randn(2, 24, 9, 7).relu()
    for layer, value in ((FusedConv2d(conv, policy), x), (FusedLinear(linear, policy), x[:, :, 0, 0])):
        layer.eval()
        with torch.no_grad():
            expected = layer(value)
            layer.observer = Observer()
            layer(value)
            observer, layer.observer = layer.observer, None
            layer.int8 = observer.best_range()
            assert layer.int8.zero_point == 0
            error = relative(layer(value), expected)
            assert 1e-4 < error < 0.02
            assert error == pytest.approx(observer.error(layer.int8), rel=0.5)
            conv_or_linear = layer.original
            conv_or_linear.weight.mul_(2)  # what was prepared is made anew
            assert relative(layer(value), conv_or_linear(value)) < 0.02


def test_ranges():
    assert Int8Range.of(0, 255) == (1, 0) and Int8Range.of(-255, 0) == (1, 255)
    assert Int8Range.of(2, 510) == (2, 0)  # 0 is in it
    wide = Int8Range.of(-1, 1)
    x = torch.linspace(-2, 2, 101)
    result = wide.apply(x)
    torch.testing.assert_close(result, x.clamp(-1, 1), rtol=0, atol=wide.scale)
    assert wide.apply(torch.zeros(1)) == 0
    observer = Observer()
    sample = torch.randn(512, 100, generator=torch.Generator().manual_seed(0))
    sample[0, 0] = 12  # far from the others
    observer(sample, torch.ones(4, 100), None, True)
    assert (observer.low, observer.high) == (sample.min().item(), 12)
    found = observer.best_range()
    assert 4 < found.scale * (255 - found.zero_point) < 11.9
    everything = Int8Range.of(observer.low, observer.high)
    assert (found.apply(sample) - sample).square().mean() < (
        everything.apply(sample) - sample
    ).square().mean()


def test_the_digest_is_of_names_and_values():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    digest = state_digest(model)
    assert digest == state_digest(copy.deepcopy(model).to(memory_format=torch.channels_last))
    assert digest != state_digest(nn.Sequential(model[0]))
    model[1].running_mean[1] += 1
    assert digest != state_digest(model)


@needs_it
def test_what_calibration_did_not_reach_is_said(model, inputs, caplog):
    """Images in which nothing is found reach no head of masks."""
    blind = copy.deepcopy(model)
    blind.roi_heads.box_predictor.test_score_thresh = 2.0
    fast = accelerate(blind, bf16=False, int8=inputs[:1])
    assert "none of the inputs reached roi_heads.mask_head, which is not in int8" in caplog.text
    assert "backbone.fpn_lateral3" in fast.acceleration.int8.layers and "no layer" not in caplog.text
    caplog.clear()
    plain = accelerate(model, bf16=False)
    strict = calibrate_int8(plain, [("backbone", False)], inputs[:1], layer_bound=1e-6)
    assert not strict.errors and re.search(
        r"no layer is in int8, of \d+: .*: its error would be", caplog.text
    )
    assert "no layer can be in int8" not in caplog.text
    calibrate_int8(model, [("backbone", False)], inputs[:1])  # not accelerated
    assert "no layer can be in int8: `print(model)` shows none" in caplog.text


@needs_it
@pytest.mark.parametrize("side", [32, 8])
def test_one_small_image_calibrates(model, inputs, make_batch, side):
    few = [make_batch([[1, 1, side - 1, side - 1]], size=(side, side))]
    fast = accelerate(model, bf16=False, int8=few)
    assert fast.acceleration.int8.layers
    with torch.no_grad():
        instances = fast(inputs[0])[0]["instances"]
    assert instances.scores.isfinite().all() and instances.pred_boxes.tensor.isfinite().all()


@needs_it
def test_two_threads_at_once_get_what_one_gets(model, fast, inputs):
    """Sizes of their own, so that memory, prepared weights and scratch are shared in turns."""
    copies = [accelerate(model, bf16=False, int8=fast.acceleration.int8) for _ in range(2)]
    batches = [inputs[0], [{"image": inputs[1][0]["image"][:, :64]}]]

    def run(network, batch):
        with torch.no_grad():
            return network.backbone(network.preprocess_image(batch).tensor)

    expected = [run(copies[0], batch) for batch in batches]
    shared = copies[1]  # nothing of it is prepared yet
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: run(shared, batches[number % 2]), range(12)))
    for number, result in enumerate(found):
        for name, value in expected[number % 2].items():
            assert torch.equal(result[name], value)
