"""The keypoint head's RoIs: which, how large, and pooled how often."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads.roi_heads import select_proposals_with_visible_keypoints
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext.layers.boxes import scaled_boxes
from mrcnn_ext.modeling.roi_heads.keypoint_rois import keypoints_in_boxes, sample_keypoint_rois

pytestmark = pytest.mark.detectron2

MATCHER = Matcher([0.5], [0, 1], allow_low_quality_matches=False)
BOXES = ([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]])


def fused(tiny_cfg, *opts, name="FusedROIHeads"):
    torch.manual_seed(0)
    return build_model(
        tiny_cfg(
            *["MODEL.ROI_HEADS.NAME", name, "MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead"],
            *["MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"],
            *["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", str("Cascade" in name)],
            *opts,
        )
    )


def train_step(model, batch, seed=1):
    torch.manual_seed(seed)
    with EventStorage() as storage:
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    return {name: loss.item() for name, loss in losses.items()}, storage.latest()


def rois_of(model, batch):
    """The RoIs handed to the keypoint head in training."""
    seen = []
    model.roi_heads.keypoint_head.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    torch.manual_seed(1)
    with EventStorage(), torch.no_grad():
        model.train()(batch)
    return seen[0]


def test_visible_means_what_it_does_to_detectron2(make_batch):
    images = [item["instances"] for item in make_batch(*BOXES)]
    for image in images:
        image.proposal_boxes = Boxes(image.gt_boxes.tensor + torch.tensor([20.0, 20, 5, 5]))
        image.gt_keypoints.tensor[0, :, 2] = 0
    with EventStorage():
        expected = [len(x) for x in select_proposals_with_visible_keypoints(images)]
    got = [keypoints_in_boxes(x.gt_keypoints.tensor, x.proposal_boxes.tensor).sum().item() for x in images]
    assert got == expected and 0 < sum(got) < 3


def test_sampled_rois_fit_an_object_with_keypoints(make_batch):
    targets = [item["instances"] for item in make_batch(*BOXES, [])]
    targets[0].gt_keypoints.tensor[1, :, 2] = 0  # the second object has none that is labelled
    targets[1].gt_keypoints.tensor[..., 2] = 2
    proposals = []
    for _ in targets:
        near = torch.tensor(BOXES[0] + BOXES[1]).float()[:, None] + torch.randn(3, 20, 4) * 3
        proposals.append(
            Instances((64, 80), proposal_boxes=Boxes(near.flatten(0, 1)), objectness_logits=torch.zeros(60))
        )
    rois = sample_keypoint_rois(proposals, targets, MATCHER, samples_per_image=7)
    assert [len(image) for image in rois] == [7, 7, 0]
    for image in rois[:2]:
        boxes, objects = image.proposal_boxes.tensor, image.gt_boxes.tensor
        corner, end = torch.maximum(boxes[:, :2], objects[:, :2]), torch.minimum(boxes[:, 2:], objects[:, 2:])
        shared = (end - corner).clamp(min=0).prod(dim=1)
        areas = image.proposal_boxes.area() + image.gt_boxes.area()
        assert (shared / (areas - shared) >= 0.5).all()
        assert (image.gt_keypoints.tensor[..., 2] > 0).any(dim=1).all()
        assert image.has("gt_classes") and image.has("gt_masks")
    assert (rois[0].gt_boxes.tensor == targets[0].gt_boxes.tensor[0]).all()
    few = sample_keypoint_rois([p[:0] for p in proposals], targets, MATCHER, samples_per_image=7)
    assert [len(image) for image in few] == [1, 1, 0]  # the ground truth itself
    none = sample_keypoint_rois([p[:0] for p in proposals], targets, MATCHER, 7, append_gt=False)
    assert [len(image) for image in none] == [0, 0, 0]


def test_a_class_with_keypoints_is_not_starved(tiny_cfg, make_batch):
    """Of many objects one has keypoints: few of the box head's positives are of it."""
    objects = [[2 + 12 * i, 2 + 20 * j, 12 + 12 * i, 20 + 20 * j] for i in range(6) for j in range(3)]
    batch = make_batch(objects)
    batch[0]["instances"].gt_keypoints.tensor[1:, :, 2] = 0
    batch[0]["instances"].gt_keypoints.tensor[0, :, 2] = 2
    counts = []
    for samples in ("0", "8"):
        model = fused(tiny_cfg, "MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE", samples)
        proposals = [Instances((64, 80))]
        proposals[0].proposal_boxes = Boxes(torch.tensor(objects).float().repeat(10, 1) + 0.1)
        proposals[0].objectness_logits = torch.zeros(180)
        model.proposal_generator.forward = lambda *args, p=proposals: (p, {})
        counts.append(len(rois_of(model, batch)[0]))
    assert counts[0] <= 4 and counts[1] == 8


@pytest.mark.parametrize("name", ["FusedROIHeads", "FusedCascadeROIHeads"])
def test_masks_and_keypoints_are_pooled_once_with_the_same_result(tiny_cfg, make_batch, name):
    batch, results, calls = make_batch(*BOXES), [], []
    for once in (True, False):
        model = fused(tiny_cfg, name=name)
        assert model.roi_heads.pools_once
        model.roi_heads.pools_once = once
        for pooler in (model.roi_heads.mask_pooler, model.roi_heads.keypoint_pooler):
            pooler.register_forward_hook(lambda *args, once=once: calls.append(once))
        losses, _ = train_step(model, batch)
        with torch.no_grad():
            instances = model.eval().inference(batch)[0]["instances"]
        results.append((losses, instances))
    assert (calls.count(True), calls.count(False)) == (2, 4)
    assert results[0][0] == pytest.approx(results[1][0])
    for field in ("pred_keypoints", "pred_masks"):
        torch.testing.assert_close(results[0][1].get(field), results[1][1].get(field))


@pytest.mark.parametrize("section", ["MASK", "KEYPOINT"])
def test_poolers_that_differ_stay_apart(tiny_cfg, section):
    for option in (["POOLER_RESOLUTION", "10"], ["POOLER_TYPE", "ROIAlign"], ["POOLER_SAMPLING_RATIO", "2"]):
        model = fused(tiny_cfg, f"MODEL.ROI_{section}_HEAD.{option[0]}", option[1])
        assert not model.roi_heads.pools_once


def c4(tiny_cfg, *opts, keypoint_head="HeatmapKeypointHead"):
    torch.manual_seed(0)
    return build_model(
        tiny_cfg(
            *["MODEL.ROI_HEADS.NAME", "FusedRes5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"],
            *["MODEL.RPN.IN_FEATURES", "['res4']", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8, 16, 32, 64]]"],
            *["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.OUT_FEATURES", "['res4']"],
            *["MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "8"],
            *["MODEL.RESNETS.WIDTH_PER_GROUP", "4", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "14"],
            *["MODEL.ROI_MASK_HEAD.NUM_CONV", "0", "MODEL.ROI_KEYPOINT_HEAD.NAME", keypoint_head],
            *opts,
        )
    )


MODELS = {
    "standard": fused,
    "cascade": lambda cfg, *opts: fused(cfg, *opts, name="FusedCascadeROIHeads"),
    "C4": c4,
    "C4 SimCC": lambda cfg, *opts: c4(cfg, *opts, keypoint_head="SimCCKeypointHead"),
}
OPTIONS = {
    "stock": [],
    "sampled": ["MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE", "6"],
    "enlarged": ["MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", "1.25"],
    "sampled, enlarged, on predicted boxes": [
        *["MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE", "6", "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", "1.25"],
        *["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"],
    ],
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("form", MODELS)
def test_trains_and_infers(tiny_cfg, make_batch, form, options):
    model = MODELS[form](tiny_cfg, *OPTIONS[options])
    losses, _ = train_step(model, make_batch(*BOXES))
    assert losses["loss_keypoint"] > 0 and losses["loss_mask"] > 0
    with torch.autocast("cpu", torch.bfloat16):
        empty, _ = train_step(model, make_batch([], []))
    assert empty["loss_keypoint"] == empty["loss_mask"] == 0
    with torch.no_grad():
        instances = model.eval().inference(make_batch(*BOXES))[0]["instances"]
    assert instances.pred_keypoints.shape == (5, 17, 3) and instances.pred_masks.shape == (5, 64, 80)
    boxes = instances.pred_boxes.tensor  # those of the detections, within the image
    assert boxes.min() >= 0 and (boxes <= torch.tensor([80, 64, 80, 64])).all()


@pytest.mark.parametrize("keypoints, masks", [(True, False), (False, True), (False, False)])
def test_c4_with_some_heads_only(tiny_cfg, make_batch, keypoints, masks):
    model = c4(tiny_cfg, "MODEL.KEYPOINT_ON", str(keypoints), "MODEL.MASK_ON", str(masks))
    losses, _ = train_step(model, make_batch(*BOXES))
    assert ("loss_keypoint" in losses, "loss_mask" in losses) == (keypoints, masks)
    with torch.no_grad():
        instances = model.eval().inference(make_batch(*BOXES))[0]["instances"]
    assert (instances.has("pred_keypoints"), instances.has("pred_masks")) == (keypoints, masks)


def test_c4_takes_the_foreground_through_the_stage_once(tiny_cfg, make_batch):
    model, calls = c4(tiny_cfg), []
    model.roi_heads.res5.register_forward_hook(lambda *args: calls.append(1))
    train_step(model, make_batch(*BOXES))
    assert len(calls) == 1
    with torch.no_grad():
        model.eval().inference(make_batch(*BOXES))
    assert len(calls) == 3  # boxes, then masks and keypoints of the detections


@pytest.mark.parametrize("form", ["standard", "cascade"])
@pytest.mark.parametrize("samples", ["0", "6"])
def test_train_on_pred_boxes_moves_the_rois(tiny_cfg, make_batch, form, samples):
    opts = ["MODEL.ROI_KEYPOINT_HEAD.SAMPLES_PER_IMAGE", samples]
    boxes = []
    for pred_boxes in ("False", "True"):
        model = MODELS[form](tiny_cfg, *opts, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", pred_boxes)
        predictors = [model.roi_heads.box_predictor] if form == "standard" else model.roi_heads.box_predictor
        for predictor in predictors:  # every prediction lies right of its box by a tenth of the width
            torch.nn.init.zeros_(predictor.bbox_pred.weight)
            predictor.bbox_pred.bias.data.view(-1, 4)[:, 0] = 0.1 * predictor.box2box_transform.weights[0]
        torch.manual_seed(0)
        proposals = [Instances((64, 80)), Instances((64, 80))]
        for image, objects in zip(proposals, BOXES, strict=True):
            image.proposal_boxes = Boxes(torch.tensor(objects).float())
            image.objectness_logits = torch.zeros(len(objects))
        model.proposal_generator.forward = lambda *args, p=proposals: (p, {})
        boxes.append(torch.cat([image.proposal_boxes.tensor for image in rois_of(model, make_batch(*BOXES))]))
    stages = 1 if form == "standard" else 3
    width = 1.0 * (boxes[0][:, 2] - boxes[0][:, 0])
    expected = boxes[0][:, 0] + stages * 0.1 * width
    assert (boxes[1][:, 0].sort().values - expected.sort().values).abs().max() < 1.5


def test_scaled_boxes_keep_their_centres():
    boxes = scaled_boxes(torch.tensor([[10.0, 20, 30, 60], [0, 0, 0, 0]]), 1.5)
    assert boxes.tolist() == [[5, 10, 35, 70], [0, 0, 0, 0]]


def test_keypoints_beyond_the_box_are_trained_with_larger_rois(tiny_cfg, make_batch):
    batch = make_batch([[20, 20, 40, 40]])
    keypoints = batch[0]["instances"].gt_keypoints.tensor
    keypoints[..., 0], keypoints[..., 1], keypoints[..., 2] = 41, 30, 2  # a pixel right of the box
    losses = [
        train_step(fused(tiny_cfg, "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", scale), batch)[0]["loss_keypoint"]
        for scale in ("1.0", "1.25")
    ]
    assert losses[0] == 0 < losses[1]


@pytest.mark.parametrize("form", MODELS)
def test_the_expected_similarity_is_that_of_the_object(tiny_cfg, form):
    """An enlarged RoI makes an object neither larger nor its keypoints easier to COCO."""
    scores = []
    for scale in ("1.0", "1.25"):
        options = ["MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", scale, "MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks"]
        heads = MODELS[form](tiny_cfg, *options).eval().roi_heads
        roi = scaled_boxes(torch.tensor([[10.0, 5, 40, 60]]), float(scale))
        image = Instances((64, 80), pred_boxes=Boxes(roi))
        cells = (torch.arange(56) + 0.5) / 56 - 0.5  # of the RoI; below the same Gaussian in pixels
        y, x = cells[:, None] * float(scale) * 55, cells * float(scale) * 30
        heads.keypoint_head.layers = lambda _, y=y, x=x: (-(x**2 + y**2) / 50).expand(1, 17, 56, 56)
        heads._find_keypoints(torch.zeros(1, 1, 1, 1), [image])
        scores.append(image.pred_keypoints[0, :, 2])
    torch.testing.assert_close(scores[0], scores[1], rtol=0.02, atol=0)


def test_every_loss_has_its_weight(tiny_cfg, make_batch):
    keys = {
        "loss_cls": "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT",
        "loss_box_reg": "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT",
        "loss_mask": "MODEL.ROI_MASK_HEAD.LOSS_WEIGHT",
        "loss_keypoint": "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT",
    }
    for form in ("standard", "cascade", "C4"):
        for mask_head in ("FCNMaskHead", "MaskRCNNConvUpsampleHead"):
            opts = ["MODEL.ROI_MASK_HEAD.NAME", mask_head]
            plain, _ = train_step(MODELS[form](tiny_cfg, *opts), make_batch(*BOXES))
            opts += [x for i, key in enumerate(keys.values()) for x in (key, str(2.0 + i))]
            weighted, _ = train_step(MODELS[form](tiny_cfg, *opts), make_batch(*BOXES))
            for name, value in plain.items():
                factor = next((2.0 + i for i, loss in enumerate(keys) if name.startswith(loss)), 1.0)
                assert weighted[name] == pytest.approx(factor * value, rel=1e-4), (form, name)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["SAMPLES_PER_IMAGE", "-1"], "keypoint_samples_per_image must be 0 or more, got -1"),
        (["BOX_SCALE", "0.0"], "keypoint_box_scale must be above 0, got 0.0"),
    ],
)
def test_bad_options(tiny_cfg, option, message):
    with pytest.raises(ValueError, match=message):
        fused(tiny_cfg, f"MODEL.ROI_KEYPOINT_HEAD.{option[0]}", option[1])
