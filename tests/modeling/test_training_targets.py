"""Training targets beside stock's: the same anchors, samples and masks."""

import copy

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from mrcnn_ext import accelerate
from mrcnn_ext.modeling.fuse_rules.training_targets import IndexedBitMasks

pytestmark = pytest.mark.detectron2

SIDE = 120


def random_boxes(count, seed, low=-10.0, high=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = low + torch.rand(count, 2, generator=generator) * (high - low)
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 60 + 0.5], 1)


def random_masks(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, SIDE, SIDE + 10, generator=generator) < 0.5


def targets(count):
    image = Instances((SIDE, SIDE + 10))
    image.gt_boxes = Boxes(random_boxes(count, 3).clamp(0, SIDE))
    image.gt_classes = torch.zeros(count, dtype=torch.int64)
    image.gt_masks = BitMasks(random_masks(count))
    return image


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("boundary", [-1, 0])
def test_anchors_are_labelled_and_sampled_as_by_stock(tiny_cfg, low_quality, boundary):
    stock = build_model(tiny_cfg()).train().proposal_generator
    stock.anchor_matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=low_quality)
    stock.anchor_boundary_thresh = boundary
    model = build_model(tiny_cfg()).train()
    model.proposal_generator = stock
    fast = accelerate(model).proposal_generator
    assert "label_and_sample_anchors" in vars(fast) and "label_and_sample_anchors" not in vars(stock)
    anchors = [Boxes(random_boxes(count, count)) for count in (3000, 700, 50)]
    images = [targets(9), targets(1), targets(0)]
    assert len(pairwise_iou(images[0].gt_boxes, anchors[0]).unique()) > 100
    results = []
    for rpn in (stock, fast):
        torch.manual_seed(0)
        results.append(rpn.label_and_sample_anchors(anchors, images))
    for labels, expected in zip(results[1][0], results[0][0], strict=True):
        assert torch.equal(labels, expected) and labels.dtype == expected.dtype
    for boxes, expected in zip(results[1][1], results[0][1], strict=True):
        assert torch.equal(boxes, expected)
    assert (results[0][0][0] == 1).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_proposals_of_training_are_stocks(tiny_cfg, dtype):
    """Under autocast the predictions are bfloat16, many of them equal."""
    stock = build_model(tiny_cfg()).train()
    fast = accelerate(stock).proposal_generator
    assert "predict_proposals" in vars(fast) and fast.training
    anchors = [Boxes(random_boxes(count, count)) for count in (3000, 700, 50)]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, len(level), generator=generator).to(dtype) for level in anchors]
    deltas = [torch.randn(2, len(level), 4, generator=generator).to(dtype) for level in anchors]
    predictions = [[x.requires_grad_() for x in of] for of in (logits, deltas)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        results = [
            rpn.predict_proposals(anchors, *predictions, [(SIDE, SIDE + 10)] * 2)
            for rpn in (stock.proposal_generator, fast)
        ]
    for expected, image in zip(*results, strict=True):
        assert torch.equal(image.proposal_boxes.tensor, expected.proposal_boxes.tensor)
        assert torch.equal(image.objectness_logits, expected.objectness_logits)
        assert len(image) == 20 and not image.proposal_boxes.tensor.requires_grad
    logits[1].detach()[0, 3] = torch.inf
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        fast.predict_proposals(anchors, *predictions, [(SIDE, SIDE + 10)] * 2)


def test_crops_are_stocks_bit_for_bit():
    masks = random_masks(6)
    index = torch.tensor([0, 0, 5, 3, 3, 3, 2, 1, 4, 4, 5, 5])
    boxes = random_boxes(len(index), 5)
    boxes[2] = torch.tensor([-30.0, -30, -0.7, -0.7])  # off the image, by less than a pixel and by more
    boxes[3] = torch.tensor([SIDE + 9.6, SIDE - 0.3, SIDE + 30, SIDE + 30])
    boxes[4] = torch.tensor([500.0, 500, 600, 600])
    boxes[5] = torch.tensor([40.0, 40, 20, 20])
    boxes[6] = torch.tensor([0.0, 0, SIDE + 10, SIDE])
    indexed = IndexedBitMasks(masks)[index]
    for size in (28, 7):
        expected = BitMasks(masks[index]).crop_and_resize(boxes, size)
        assert torch.equal(indexed.crop_and_resize(boxes, size), expected)
        assert expected.any() and not expected.all()
    with pytest.raises(ValueError, match="a box for each of 12 masks, got 3"):
        indexed.crop_and_resize(boxes[:3], 28)


def test_indexed_masks_are_bit_masks():
    masks = random_masks(5)
    stock, indexed = BitMasks(masks), IndexedBitMasks(masks)
    chosen = torch.tensor([True, False, True, True, False])
    for item in (2, -1, slice(1, 4), chosen, torch.tensor([4, 4, 0])):
        assert torch.equal(indexed[item].tensor, stock[item].tensor)
    assert torch.equal(indexed[chosen][torch.tensor([2, 0])].tensor, masks[[3, 0]])
    assert len(indexed[chosen]) == 3 and indexed.image_size == stock.image_size
    assert indexed[chosen].device == masks.device and len(indexed[chosen].to("cpu")) == 3
    both = BitMasks.cat([indexed[chosen], indexed])
    assert torch.equal(both.tensor, torch.cat([masks[chosen], masks]))
    assert torch.equal(indexed[chosen].nonempty(), stock[chosen].nonempty())
    assert torch.equal(indexed[chosen].get_bounding_boxes().tensor, stock[chosen].get_bounding_boxes().tensor)


def test_proposals_share_the_masks_of_their_image(tiny_cfg):
    stock = build_model(tiny_cfg()).train()
    fast = accelerate(stock)
    image, results = targets(4), []
    for model in (stock, fast):
        proposals = Instances(image.image_size, proposal_boxes=Boxes(random_boxes(200, 7).clamp(0, SIDE)))
        proposals.objectness_logits = torch.zeros(200)
        torch.manual_seed(0)
        with EventStorage():
            (sampled,) = model.roi_heads.label_and_sample_proposals(
                [copy.deepcopy(proposals)], [copy.deepcopy(image)]
            )
        results.append(sampled)
    assert torch.equal(results[0].proposal_boxes.tensor, results[1].proposal_boxes.tensor)
    assert isinstance(results[1].gt_masks, IndexedBitMasks)
    assert torch.equal(results[0].gt_masks.tensor, results[1].gt_masks.tensor)
    assert type(accelerate(stock, targets=False).roi_heads) is type(stock.roi_heads)
    assert accelerate(stock, targets=False).acceleration.steps["targets"] == "off"
