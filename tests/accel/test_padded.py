"""Padded proposals and detections: the results of the same model without, and the host waits once."""

import copy
import pickle
from functools import partial

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import StandardROIHeads
from synchronizations import Synchronizations

from mrcnn_ext.accel.padding import padded_results
from mrcnn_ext.layers.suppression import suppress
from mrcnn_ext.modeling import LazyMasks, accelerate
from mrcnn_ext.ops import keypoint_decoding, mask_pasting

MODELS = {
    "stock": (),
    "ours": ("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead")
    + (
        "MODEL.ROI_KEYPOINT_HEAD.NAME",
        "HeatmapKeypointHead",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        "True",
    ),
    "oks": ("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead")
    + ("MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks", "MODEL.ROI_MASK_HEAD.NAME", "MaskScoringHead"),
}
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


@pytest.fixture
def make_model(tiny_cfg):
    def make(name="stock", *opts):
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*MODELS[name], *opts)).eval()
        for key, value in model.state_dict().items():
            if key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
                value.mul_(5)
        return model

    return make


@pytest.fixture
def batch(make_batch):
    batch = make_batch(BOXES, BOXES[:1], size=(64, 96))
    batch[1].update(height=100, width=150)  # of the original image
    return batch


@pytest.fixture
def as_on_a_device(monkeypatch):
    """Steps that have a form for the CPU take that of other devices."""
    paste = mask_pasting.paste_masks

    def paste_at_once(*args, **kwargs):
        return paste(*args, **kwargs, at_once=True)

    monkeypatch.setattr("mrcnn_ext.modeling.fuse_rules.outputs.paste_masks", paste_at_once)
    monkeypatch.setattr(keypoint_decoding._extension, "is_available", lambda: False)
    monkeypatch.setattr(keypoint_decoding._extension, "warn_fallback", lambda *args: None)


@torch.no_grad()
def infer(model, batch, **options):
    results = model.inference(copy.deepcopy(batch), **options)
    return [result["instances"] if isinstance(result, dict) else result for result in results]


def assert_equal(results, expected, some=True):
    for result, other in zip(results, expected, strict=True):
        assert result.image_size == other.image_size and (len(other) > 0) == some
        ours, theirs = result.get_fields(), other.get_fields()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            a, b = (v if isinstance(v, torch.Tensor) else v.tensor for v in (ours[name], value))
            assert a.dtype == b.dtype and torch.equal(a, b), name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bf16", [False, True])
def test_results_are_those_without_padding(make_model, batch, name, bf16):
    model = make_model(name)
    plain, padded = (accelerate(model, bf16=bf16, padded=value) for value in (False, True))
    assert padded.acceleration.steps["padded"] == "proposals and detections"
    assert plain.acceleration.steps["padded"] == "off"
    assert_equal(infer(padded, batch), infer(plain, batch))
    assert_equal(*(infer(m, batch, do_postprocess=False) for m in (padded, plain)))
    known = infer(plain, batch, do_postprocess=False)
    for instances in known:
        instances.remove("pred_masks")
    given = {"detected_instances": known}
    assert_equal(*(infer(m, batch, **copy.deepcopy(given)) for m in (padded, plain)))
    assert padded_results() is None


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("masks", [True, "lazy"])
def test_the_host_waits_once(make_model, batch, name, bf16, masks, as_on_a_device):
    fast = accelerate(make_model(name), bf16=bf16, padded=True, masks=masks)
    infer(fast, batch)  # prepares weights
    on_device = [*fast.parameters(), *fast.buffers(), *(item["image"] for item in batch)]
    with torch.no_grad(), Synchronizations(on_device) as waits:
        results = fast(batch)
    assert len(results[0]["instances"]) and isinstance(results[0]["instances"].pred_masks, LazyMasks) == (
        masks == "lazy"
    )
    assert len(waits.counts) == 1, waits.counts
    (wait,) = waits.counts.items()
    assert "mrcnn_ext/accel/padding.py" in wait[0] and wait[1] == 1


def test_what_waits_is_seen(make_model, batch, as_on_a_device):
    """Without padding there is a wait for each image, and in stock's steps for more than that."""
    found = {}
    for kind, options in {"plain": {}, "stock": {"detections": False, "pooler": False}}.items():
        fast = accelerate(make_model(), bf16=False, padded=False, **options)
        on_device = [*fast.parameters(), *fast.buffers(), *(item["image"] for item in batch)]
        with torch.no_grad(), Synchronizations(on_device) as waits:
            fast(batch)
        found[kind] = waits.counts
    assert sum(found["plain"].values()) > 10 and any("nms" in place for place in found["plain"])
    assert any("nonzero" in place for place in found["stock"])
    assert any("detectron2/layers/nms.py" in place or "boxes.py" in place for place in found["stock"])


def test_shapes_of_proposals_do_not_depend_on_their_number(make_model, batch):
    fast = accelerate(make_model("stock", "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "30"), bf16=False, padded=True)
    pooled = []
    fast.roi_heads.box_pooler.register_forward_hook(lambda module, args, output: pooled.append(len(output)))
    infer(fast, batch)
    assert pooled == [2 * 20]


@pytest.mark.parametrize(
    "opts", [("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0"), ("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "1000")]
)
def test_images_without_detections_or_proposals(make_model, batch, opts):
    model = make_model("stock", *opts)
    results = infer(accelerate(model, bf16=False, padded=True), batch)
    assert_equal(results, infer(accelerate(model, bf16=False), batch), some=False)
    assert results[1].pred_masks.shape == (0, 100, 150)


def test_results_that_are_not_exact_are_made_without_padding(make_model, batch, monkeypatch):
    model = make_model()
    plain, padded = (accelerate(model, bf16=False, padded=value) for value in (False, True))
    calls = []
    padded.backbone.register_forward_hook(lambda *args: calls.append(padded_results() is not None))
    infer(padded, batch)
    assert calls == [True]
    monkeypatch.setattr("mrcnn_ext.layers.padded_detections.suppress", partial(suppress, rounds=1))
    assert_equal(infer(padded, batch), infer(plain, batch))
    assert calls == [True, True, False]


def test_empty_boxes_at_output_size_are_dropped(make_model, batch):
    model = make_model()
    for item in batch:
        item.update(height=64, width=1)
    # Boxes at the right end are of no width there.
    plain, padded = (accelerate(model, bf16=False, padded=value) for value in (False, True))
    assert_equal(infer(padded, batch), infer(plain, batch))


def test_anchors_are_made_once_for_a_shape(make_model, batch, make_batch):
    fast = accelerate(make_model(), bf16=False, padded=True)
    generator = fast.proposal_generator.anchor_generator
    calls = []
    stock = type(generator)._grid_anchors
    generator._grid_anchors = lambda sizes: calls.append(sizes) or stock(generator, sizes)
    for _ in range(3):
        infer(fast, batch)
    assert len(calls) == 1
    for size in range(10):
        infer(fast, make_batch(BOXES, size=(64, 96 + 32 * size)))
    assert len(calls) == 10 and len(generator.forward.made) == 8


def test_it_can_be_copied_pickled_and_trained(make_model, batch):
    fast = accelerate(make_model(), bf16=False, padded=True)
    expected = infer(fast, batch)
    assert_equal(infer(copy.deepcopy(fast), batch), expected)
    assert_equal(infer(pickle.loads(pickle.dumps(fast)), batch), expected)
    assert (
        accelerate(fast, bf16=False, padded=True).acceleration.steps["padded"] == "proposals and detections"
    )
    assert accelerate(fast, bf16=False).acceleration.steps["padded"].startswith("off")


def test_only_masks_as_stock(make_model, batch):
    model = make_model()
    fast = accelerate(model, bf16=False, padded=True, masks=False)
    assert_equal(infer(fast, batch), infer(accelerate(model, bf16=False, masks=False), batch))


@pytest.mark.parametrize(
    "opts, why",
    [
        (("MODEL.RPN.PRE_NMS_TOPK_TEST", "6000"), "the RPN takes 6000 anchors of a level"),
        (("TEST.DETECTIONS_PER_IMAGE", "-1"), "there may be any number of detections"),
        (
            ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
            "CascadeROIHeads is neither StandardROIHeads nor says `takes_padding = True`",
        ),
    ],
)
def test_models_that_cannot_be_padded_say_why(make_model, opts, why):
    model = make_model("stock", *opts)
    with pytest.raises(ValueError, match=f"padded=True cannot be had: {why}"):
        accelerate(model, padded=True, copy=False)
    assert not hasattr(model, "acceleration")
    assert accelerate(model).acceleration.steps["padded"].startswith(f"off: {why}")


def test_heads_of_ones_own_are_not_padded(make_model):
    class Heads(StandardROIHeads):
        def _forward_mask(self, features, instances):
            return super()._forward_mask(features, instances)

    model = make_model()
    model.roi_heads.__class__ = Heads
    assert "Heads is neither" in accelerate(model).acceleration.steps["padded"]
    with pytest.raises(ValueError, match="padded=True cannot be had: detections is False"):
        accelerate(make_model(), padded=True, detections=False)
    with pytest.raises(ValueError, match='padded must be True, False or "auto", got 3'):
        accelerate(make_model(), padded=3)
    text = accelerate(make_model()).acceleration.steps["padded"]
    assert text == "off: nothing is to be waited for on a cpu device"
