"""Padded proposals and detections of torchvision's detectors: the results without, and the host waits once."""

from importlib import import_module

import pytest
import torch
from small_detectors import SETTINGS, settled
from synchronizations import Synchronizations
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
)
from torchvision.models.detection.roi_heads import RoIHeads

from mrcnn_ext import accelerate
from mrcnn_ext.accel import cuda_graphs
from mrcnn_ext.layers import LazyMasks
from mrcnn_ext.ops import keypoint_decoding

MODELS = {"masks": (maskrcnn_resnet50_fpn, {"num_classes": 4}), "keypoints": (keypointrcnn_resnet50_fpn, {})}


def images(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in ((64, 96), (60, 64))]


@pytest.fixture(scope="module")
def make_model():
    made = {}

    def make(name):
        if name not in made:
            torch.manual_seed(0)
            build, options = MODELS[name]
            made[name] = settled(build(**SETTINGS, **options), images())
        return made[name]

    return make


@torch.no_grad()
def assert_same(model, other, given=None):
    found, expected = (m(given or images()) for m in (model, other))
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys() and len(b["boxes"]) == 4
        for name, value in b.items():
            ours, theirs = (v.tensor if isinstance(v, LazyMasks) else v for v in (a[name], value))
            assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("name, bf16", [("masks", False), ("masks", True), ("keypoints", False)])
def test_results_are_those_without_padding(make_model, name, bf16):
    masks = "lazy" if bf16 else True
    plain, padded = (
        accelerate(make_model(name), bf16=bf16, padded=value, masks=masks) for value in (False, True)
    )
    assert padded.acceleration.steps["padded"] == "proposals and detections"
    assert_same(padded, plain)
    assert accelerate(padded, masks="lazy").acceleration.steps["padded"].startswith("off: nothing")


@pytest.mark.parametrize("name", MODELS)
def test_the_host_waits_once(make_model, name, monkeypatch):
    monkeypatch.setattr(keypoint_decoding._extension, "is_available", lambda: False)
    monkeypatch.setattr(keypoint_decoding._extension, "warn_fallback", lambda *args: None)
    fast = accelerate(make_model(name), bf16=False, padded=True, masks="lazy")
    with torch.no_grad():
        fast(images())  # prepares weights, and the scales of poolers
        given = images()
        with Synchronizations([*fast.parameters(), *fast.buffers(), *given]) as waits:
            results = fast(given)
    assert len(results[0]["boxes"]) == 4
    of_images = "as_tensor at transform.py"
    places = {place: count for place, count in waits.counts.items() if of_images not in place}
    assert len(places) == 1, places
    ((place, count),) = places.items()
    assert "mrcnn_ext/accel/padding.py" in place and count == 1
    # Mean and deviation of pixels, copied to the device for each image before anything is computed there.
    assert sum(waits.counts.values()) - count == 2 * 2


def test_results_that_are_not_exact_are_made_without_padding(make_model, monkeypatch):
    from mrcnn_ext.layers import padded_detections

    model = make_model("masks")
    monkeypatch.setattr(padded_detections, "_CANDIDATES", 0)
    calls = []
    padded = accelerate(model, bf16=False, padded=True, masks=False)
    padded.backbone.register_forward_hook(lambda *args: calls.append(1))
    assert_same(padded, accelerate(model, bf16=False, masks=False))
    assert len(calls) == 2


def test_networks_of_fixed_shapes(make_model, monkeypatch):
    module = import_module("mrcnn_ext.accel.accelerate")
    monkeypatch.setattr(module, "choose_cuda_graphs", lambda *args: (True, ""))
    names = {
        "masks": "roi_heads.box_head, roi_heads.mask_head",
        "keypoints": "roi_heads.box_head, roi_heads.keypoint_head, roi_heads.keypoint_predictor",
    }
    for name, heads in names.items():
        fast = accelerate(make_model(name), bf16=False, padded=True)
        expected = f"the detector as a whole, else backbone, rpn.head, {heads}"
        assert fast.acceleration.steps["cuda_graphs"] == expected
        assert all(
            isinstance(vars(m).get("infer") or vars(m).get("forward"), cuda_graphs.GraphedMethod)
            for m in (fast.backbone, fast.rpn.head, fast.roi_heads.box_head)
        )
        assert_same(fast, accelerate(make_model(name), bf16=False, padded=False))


def test_models_that_cannot_be_padded_say_why(make_model):
    settings = {**SETTINGS, "rpn_pre_nms_top_n_test": 5000}
    with pytest.raises(ValueError, match="padded=True cannot be had: the RPN takes 5000 anchors of a level"):
        accelerate(fasterrcnn_resnet50_fpn(**settings).eval(), padded=True)

    class Heads(RoIHeads):
        def postprocess_detections(self, *args):
            return super().postprocess_detections(*args)

    model = fasterrcnn_resnet50_fpn(**SETTINGS).eval()
    model.roi_heads.__class__ = Heads
    assert "Heads selects detections of its own" in accelerate(model).acceleration.steps["padded"]
