"""Proposals and detections in one pass against detectron2's and torchvision's, step by step."""

import pytest
import torch
from torchvision.ops import batched_nms

from mrcnn_ext.layers import detections as layers
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.detections import can_propose, can_select, rpn_proposals, top_detections

pytestmark = pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
OP = torch.ops.mrcnn_ext
SIZES = [(90, 80), (60, 100)]


def levels(counts, images=2, seed=0, rounded=False):
    """Logits, deltas and anchors; rounded: of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    logits, deltas, anchors = [], [], []
    for count in counts:
        scores = torch.randn(images, count, generator=generator)
        logits.append((scores * 4).round() / 4 if rounded else scores)
        deltas.append(torch.randn(images, count, 4, generator=generator))
        corners = torch.rand(count, 2, generator=generator) * 90
        anchors.append(torch.cat([corners, corners + 3 + 40 * torch.rand(count, 2, generator=generator)], 1))
    return logits, deltas, anchors


def detectron2s(logits, deltas, anchors, sizes, weights, nms_thresh, pre_topk, post_topk, min_size):
    """As RPN.predict_proposals."""
    regression = pytest.importorskip("detectron2.modeling.box_regression")
    utils = pytest.importorskip("detectron2.modeling.proposal_generator.proposal_utils")
    transform = regression.Box2BoxTransform(weights)
    decoded = [
        transform.apply_deltas(of.reshape(-1, 4), level.expand(len(of), *level.shape).reshape(-1, 4)).view_as(
            of
        )
        for of, level in zip(deltas, anchors, strict=True)
    ]
    return utils.find_top_rpn_proposals(
        decoded, logits, sizes, nms_thresh, pre_topk, post_topk, min_size, False
    )


@pytest.mark.parametrize("counts", [(900, 400, 30), (700,), (40, 0, 7)], ids=str)
@pytest.mark.parametrize(
    "rounded, dtype", [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)]
)
@pytest.mark.parametrize("topks", [(600, 100), (300, 1000), (5, 0)], ids=str)
def test_proposals_are_detectron2s(counts, rounded, dtype, topks):
    """Enough boxes for suppression level by level, and so few that they are moved apart."""
    logits, deltas, anchors = levels(counts, rounded=rounded)
    inputs = [x.to(dtype) for x in logits], [x.to(dtype) for x in deltas], anchors
    for weights, nms_thresh, min_size in (((1.0,) * 4, 0.7, 0.0), ((10.0, 10.0, 5.0, 5.0), 0.3, 9.0)):
        clamp = 4.135166556742356
        found = rpn_proposals(*inputs, SIZES, weights, clamp, nms_thresh, *topks, min_size)
        # Half types come from autocast alone, under which torchvision's suppression takes them.
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            expected = detectron2s(*inputs, SIZES, weights, nms_thresh, *topks, min_size)
        for boxes, logits, image in zip(*found, expected, strict=True):
            assert torch.equal(boxes, image.proposal_boxes.tensor)
            assert torch.equal(logits, image.objectness_logits) and logits.dtype == dtype


def test_proposals_that_are_no_number_are_left_out():
    logits, deltas, anchors = levels((300, 100))
    logits[0][0, 3], logits[1][1, 2], logits[0][1, 5] = torch.inf, -torch.inf, torch.nan
    deltas[0][0, 7, 0], deltas[0][1, 9, 2], deltas[1][1, 4, 1] = torch.nan, torch.inf, -torch.inf
    anchors[1][8] = torch.nan
    options = ((1.0,) * 4, 0.7, 300, 200, 0.0)
    found = rpn_proposals(logits, deltas, anchors, SIZES, options[0], 4.135166556742356, *options[1:])
    expected = detectron2s(logits, deltas, anchors, SIZES, *options)
    for boxes, of, image in zip(*found, expected, strict=True):
        assert len(boxes) > 50
        assert torch.equal(boxes, image.proposal_boxes.tensor) and torch.equal(of, image.objectness_logits)
    arguments = (SIZES, options[0], 4.135166556742356, *options[1:])
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        rpn_proposals(logits, deltas, anchors, *arguments, drop_not_finite=False)
    logits, deltas, anchors = levels((300, 100))
    kept = rpn_proposals(logits, deltas, anchors, *arguments, drop_not_finite=False)
    assert torch.equal(kept.boxes[0], rpn_proposals(logits, deltas, anchors, *arguments).boxes[0])


def stock_detections(boxes, scores, size, score_thresh, nms_thresh, topk, min_size):
    """As torchvision's and detectron2's box heads, in their order."""
    rows, classes = (scores > score_thresh).nonzero(as_tuple=True)
    boxes = boxes[rows, classes if boxes.shape[1] > 1 else 0]
    boxes = torch.stack([boxes[:, i].clamp(0, size[1 - i % 2]) for i in range(4)], 1)
    values = scores[rows, classes]
    if min_size is not None:
        large = (boxes[:, 2:] - boxes[:, :2] >= min_size).all(1)
        boxes, values, rows, classes = boxes[large], values[large], rows[large], classes[large]
    keep = batched_nms(boxes, values, classes, nms_thresh)[:topk]
    return boxes[keep], values[keep], classes[keep], rows[keep]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("topk, threshold", [(10, 0.02), (100, 0.02), (100, 0.93), (5000, 0.5), (0, 0.1)])
@pytest.mark.parametrize("min_size", [None, 25.0])
def test_detections_are_the_stock_ones(agnostic, rounded, topk, threshold, min_size):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 1 if agnostic else 9, 2, generator=generator) * 60
    boxes = torch.cat([corners, corners + 20 + 30 * torch.rand(corners.shape, generator=generator)], 2)
    scores = torch.rand(200, 10, generator=generator)[:, :-1]  # not contiguous, as without the background
    if rounded:
        scores = (scores * 16).round() / 16
    found = top_detections(boxes, scores, SIZES[0], threshold, 0.5, topk, min_size)
    expected = stock_detections(boxes, scores, SIZES[0], threshold, 0.5, topk, min_size)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype


def test_detections_that_are_not_finite_are_left_to_the_steps():
    boxes, scores = torch.tensor([[[0.0, 0, 9, torch.nan]], [[1, 1, 5, 5]]]), torch.tensor([[0.1], [0.9]])
    assert top_detections(boxes, scores, (20, 20), 0.05, 0.5, 5) is None
    assert top_detections(boxes, scores, (20, 20), 0.5, 0.5, 5).rows.tolist() == [1]


def test_layers_select_in_one_pass_where_it_serves(monkeypatch):
    boxes, scores = torch.tensor([[0.0, 0, 9, 9], [1, 1, 5, 5]]), torch.tensor([[0.1], [0.9]])
    steps = []
    original = layers._select_step_by_step
    monkeypatch.setattr(layers, "_select_step_by_step", lambda *args: steps.append(1) or original(*args))
    for change, by_steps in (
        ({}, False),
        ({"topk": -1}, True),
        ({"scores": scores.double(), "boxes": boxes.double()}, True),
        ({"boxes": boxes.clone().fill_(torch.inf)}, True),
        ({"nms_thresh": -0.5}, True),
        ({"boxes": boxes.clone().requires_grad_()}, True),
    ):
        steps.clear()
        arguments = {"boxes": boxes, "scores": scores, "nms_thresh": 0.5, "topk": 5} | change
        layers.select_detections(image_size=(20, 20), score_thresh=0.05, **arguments)
        assert bool(steps) == by_steps, change


def test_opcheck():
    logits, deltas, anchors = levels((50, 20))
    arguments = ([90, 60], [80, 100], (1.0,) * 4, 4.0, 0.7, 30, 40, 0.0, True)
    torch.library.opcheck(OP.rpn_proposals, (logits, deltas, anchors, *arguments))
    boxes, scores = anchors[0][:, None], logits[0].T.sigmoid().contiguous()
    torch.library.opcheck(OP.select_detections, (boxes, scores, 90, 80, 0.5, 0.5, 20, None))


def test_errors_name_the_argument():
    logits, deltas, anchors = levels((50, 20))
    rest = (SIZES, (1.0,) * 4, 4.0, 0.7, 30, 40, 0.0)
    boxes, scores = anchors[0][:, None], logits[0].T.sigmoid()
    for call, error, message in (
        (
            lambda: rpn_proposals(logits, deltas[:1], anchors, *rest),
            ValueError,
            "one tensor per level, got 2, 1 and 2",
        ),
        (
            lambda: rpn_proposals(logits, deltas[::-1], anchors, *rest),
            ValueError,
            r"deltas\[0\] must be \(2, 50, 4\), got \[2, 20, 4\]",
        ),
        (
            lambda: rpn_proposals([x.double() for x in logits], deltas, anchors, *rest),
            TypeError,
            "logits and deltas must be float32, bfloat16 or float16, got Double",
        ),
        (
            lambda: rpn_proposals(logits, deltas, anchors, SIZES[:1], *rest[1:]),
            ValueError,
            r"logits\[0\] must be \(N, n\) of 1 images, got \[2, 50\]",
        ),
        (
            lambda: top_detections(boxes[:9], scores, SIZES[0], 0.5, 0.5, 10),
            ValueError,
            r"boxes must be \(50, 1, 4\) or \(50, 2, 4\), got \[9, 1, 4\]",
        ),
        (
            lambda: top_detections(boxes, scores.half(), SIZES[0], 0.5, 0.5, 10),
            TypeError,
            "must be float32, got Float and Half",
        ),
        (
            lambda: top_detections(boxes, scores, SIZES[0], 0.5, 0.5, -1),
            ValueError,
            "topk must not be negative, got -1",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert not can_select(boxes.half(), scores, 0.5) and not can_select(boxes, scores, -1.0)
    assert can_propose(logits, [x.half() for x in deltas], anchors, 0.5)
    assert not can_propose(logits, deltas, [x.half() for x in anchors], 0.5)
    assert not can_propose([logits[0], logits[1].half()], deltas, anchors, 0.5)


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    boxes, scores = torch.zeros(1, 1, 4), torch.zeros(1, 1)
    assert not can_select(boxes, scores, 0.5)
    with pytest.raises(NotImplementedError, match="select_detections has no slower path, .* `pip install"):
        top_detections(boxes, scores, (9, 9), 0.5, 0.5, 1)
