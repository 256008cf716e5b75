"""Our keypoint heads' targets, decodings and sigmas, and the SimCC head, under stock ROI heads too."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import LazyConfig, instantiate
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_keypoint_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext import accelerate, model_zoo
from mrcnn_ext.layers import heatmaps_to_keypoints
from mrcnn_ext.modeling import HeatmapKeypointHead, SimCCKeypointHead

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
HEADS = {
    "heatmap": (HeatmapKeypointHead, {"conv_dims": [16]}),
    "WASP": (HeatmapKeypointHead, {"conv_dims": [16], "wasp_rates": [1, 2]}),
    "SimCC": (SimCCKeypointHead, {"conv_dims": [16]}),
}
BOXES = ([[4, 4, 40, 60], [9, 9, 30, 30]], [[8, 8, 70, 30]])


def build(name, seed=0, num_keypoints=17, **arguments):
    cls, defaults = HEADS[name]
    torch.manual_seed(seed)
    return cls(SHAPE, num_keypoints=num_keypoints, **{**defaults, "loss_normalizer": "visible", **arguments})


def loss_of(head, x, instances):
    with EventStorage():
        return head.train()(x, instances)["loss_keypoint"]


@pytest.mark.parametrize("sigma", [0.0, 2.0])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_where_the_keypoints_are(name, sigma, proposals):
    head, instances = build(name, target_sigma=sigma), proposals(*BOXES)
    x = torch.randn(3, 8, 14, 14)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        loss_of(head, x, instances).backward()
        optimizer.step()
    head.decoding = "dark"
    for image in instances:
        image.pred_boxes = image.proposal_boxes
    with torch.no_grad():
        head.eval()(x, instances)
    for image in instances:
        _, valid = head.targets([image], (56, 56))
        distance = (image.pred_keypoints - image.gt_keypoints.tensor)[..., :2].norm(dim=2)
        assert distance[valid].median() < 1.5  # pixels


@pytest.mark.parametrize("name", HEADS)
def test_without_ground_truth_the_loss_is_zero_with_a_gradient(name, proposals):
    for sigma in (0.0, 1.0):
        head = build(name, target_sigma=sigma)
        loss = loss_of(head, torch.randn(0, 8, 14, 14), proposals([], []))
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_no_visible_keypoint_gives_a_zero_loss_with_a_gradient(name, proposals):
    instances = proposals([[4, 4, 40, 60]])
    instances[0].gt_keypoints.tensor[..., 2] = 0
    head = build(name, target_sigma=1.0)
    loss = loss_of(head, torch.randn(1, 8, 14, 14), instances)
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_a_narrow_gaussian_costs_what_one_cell_does(name, proposals):
    """The normalisation is the stock one, by visible keypoints or by a number for each image."""
    x, instances = torch.randn(3, 8, 14, 14), proposals(*BOXES)
    for image in instances:  # in the middle of a cell, where a narrow Gaussian is in that cell alone
        boxes = image.proposal_boxes.tensor
        size = (boxes[:, None, 2:] - boxes[:, None, :2]) / 56
        cells = ((image.gt_keypoints.tensor[..., :2] - boxes[:, None, :2]) / size).floor()
        image.gt_keypoints.tensor[..., :2] = boxes[:, None, :2] + (cells + 0.5) * size
    for normalizer in ("visible", 7.5):
        losses = [
            loss_of(build(name, target_sigma=sigma, loss_normalizer=normalizer), x, instances)
            for sigma in (0.0, 0.1)
        ]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)


def test_simcc_costs_what_its_heatmap_would(proposals):
    """So that its loss weight means what the others' does."""
    head, x, instances = build("SimCC"), torch.randn(3, 8, 14, 14), proposals(*BOXES)
    simcc = loss_of(head, x, instances)
    heatmap = super(SimCCKeypointHead, head).loss(x, instances)
    torch.testing.assert_close(simcc, heatmap)


@pytest.mark.parametrize("decoding", ["stock", "dark", "quadratic", "oks"])
@pytest.mark.parametrize("name", HEADS)
def test_inference_decodes_as_asked(name, decoding):
    head = build(name, decoding=decoding).eval()
    image, empty = Instances((64, 80)), Instances((64, 80))
    image.pred_boxes = Boxes(torch.tensor([[4.0, 4, 40, 60], [10, 8, 50, 30]]))
    empty.pred_boxes = Boxes(torch.zeros(0, 4))
    with torch.no_grad():
        head(torch.randn(2, 8, 14, 14), [image, empty])
    sigmas = None if decoding != "oks" else head.oks_sigmas
    expected = heatmaps_to_keypoints(image.pred_keypoint_heatmaps, image.pred_boxes.tensor, decoding, sigmas)
    torch.testing.assert_close(image.pred_keypoints, expected[..., [0, 1, 3]])
    assert image.pred_keypoint_heatmaps.shape == (2, 17, 56, 56) and len(empty.pred_keypoints) == 0


def test_oks_scores_instances_by_the_similarity_to_expect():
    image = Instances((64, 80))
    image.pred_boxes, image.scores = Boxes(torch.tensor([[4.0, 4, 40, 60]] * 2)), torch.tensor([0.9, 0.5])
    heatmaps = torch.zeros(2, 17, 56, 56)
    heatmaps[1, :, 20, 30] = 50  # the second is sure of its places
    build("heatmap", decoding="oks").decode(heatmaps, [image])
    unsure, sure = image.keypoint_scores.tolist()
    assert sure == pytest.approx(0.5, abs=1e-3) and 0 < unsure < 0.3
    assert image.scores.tolist() == pytest.approx([0.9, 0.5])
    image.remove("keypoint_scores")
    build("heatmap", decoding="dark").decode(heatmaps, [image])
    assert not image.has("keypoint_scores")


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_autocast_and_compile(name, proposals):
    torch.compiler.reset()
    head, instances = build(name, target_sigma=1.0), proposals(*BOXES)
    x = torch.randn(3, 8, 14, 14)
    head.layers = torch.compile(head.layers, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(head, x, instances)
    loss.backward()
    assert loss.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in head.parameters())
    torch.testing.assert_close(loss, loss_of(build(name, target_sigma=1.0), x, instances), rtol=0.02, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_traces_for_any_number_of_boxes(name):
    head = build(name).eval()

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x, boxes):
            image = Instances((64, 80))
            image.pred_boxes = Boxes(boxes)
            return self.head(x, [image])[0].pred_keypoints

    boxes = torch.tensor([[4.0, 4, 40, 60], [10, 8, 50, 30], [1, 2, 30, 40]])
    x = torch.randn(3, 8, 14, 14)
    with torch.no_grad():
        traced = torch.jit.trace(Decode(), (x[:2], boxes[:2]), check_trace=False)
        torch.testing.assert_close(traced(x, boxes), Decode()(x, boxes))


def test_config_sets_every_argument(tiny_cfg):
    cfg = tiny_cfg(
        *["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32,)", "MODEL.ROI_KEYPOINT_HEAD.NORM", "GN"],
        *["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5", "MODEL.ROI_KEYPOINT_HEAD.TARGET_SIGMA", "1.5"],
        *["MODEL.ROI_KEYPOINT_HEAD.LABEL_SMOOTHING", "0.1", "MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks"],
        *["MODEL.ROI_KEYPOINT_HEAD.WASP_RATES", "[1, 3]", "MODEL.ROI_KEYPOINT_HEAD.SPLIT_RATIO", "6"],
        *[
            "TEST.KEYPOINT_OKS_SIGMAS",
            "[0.1, 0.1, 0.2, 0.2, 0.05]",
            "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT",
            "0.5",
        ],
    )
    for name in ("HeatmapKeypointHead", "SimCCKeypointHead"):
        cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = name
        head = build_keypoint_head(cfg, SHAPE)
        assert (head.target_sigma, head.label_smoothing, head.decoding) == (1.5, 0.1, "oks")
        assert (head.loss_weight, head.loss_normalizer) == (0.5, "visible")
        torch.testing.assert_close(head.oks_sigmas, torch.tensor([0.1, 0.1, 0.2, 0.2, 0.05]))
        assert not any("sigmas" in key for key in head.state_dict())  # stock checkpoints have none
        if name == "HeatmapKeypointHead":
            assert [branch.dilation for branch in head.wasp.branches] == [(1, 1), (3, 3)]
            assert head.layers(torch.randn(1, 8, 14, 14)).shape == (1, 5, 56, 56)
        else:
            assert head.layers(torch.randn(1, 8, 14, 14)).shape == (1, 5, 84, 84)


@pytest.mark.parametrize("sigmas", [[0.05] * 5, np.full(5, 0.05)], ids=["list", "array"])
def test_sigmas_come_from_the_datasets_metadata(tiny_cfg, sigmas):
    name = "five_keypoints_val"
    MetadataCatalog.get(name).keypoint_oks_sigmas = sigmas
    cfg = tiny_cfg(
        *["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5", "MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks"],
        *[
            "MODEL.ROI_KEYPOINT_HEAD.NAME",
            "HeatmapKeypointHead",
            "DATASETS.TEST",
            f"('unheard_of', '{name}')",
        ],
    )
    try:
        assert build_keypoint_head(cfg, SHAPE).oks_sigmas.tolist() == pytest.approx([0.05] * 5)
        assert "unheard_of" not in MetadataCatalog.list()
    finally:
        MetadataCatalog.pop(name)
    with pytest.raises(ValueError, match="each of the 5 keypoints, got none: .* keypoint_oks_sigmas"):
        build_keypoint_head(cfg, SHAPE)


def test_seventeen_keypoints_have_cocos_sigmas():
    head = build("heatmap", decoding="oks")
    assert head.oks_sigmas[0].item() == pytest.approx(0.026)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoding": "argmax"}, "must be one of stock, dark, quadratic, oks; got 'argmax'"),
        ({"target_sigma": -1.0}, "target_sigma must be 0 or more cells, got -1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"decoding": "oks", "num_keypoints": 3, "oks_sigmas": [0.1, 0.0, 0.1]}, "each of the 3 keypoints"),
        ({"decoding": "oks", "num_keypoints": 3}, "got none"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build("heatmap", **arguments)


def test_simcc_needs_the_size_of_the_features():
    with pytest.raises(ValueError, match="needs the height and width"):
        SimCCKeypointHead(ShapeSpec(channels=8), num_keypoints=17, conv_dims=[8])


@pytest.mark.parametrize("roi_heads", ["StandardROIHeads", "FusedROIHeads"])
@pytest.mark.parametrize(
    "opts",
    [
        ["NAME", "HeatmapKeypointHead", "WASP_RATES", "[1, 2]"],
        ["NAME", "SimCCKeypointHead", "TARGET_SIGMA", "2.0"],
    ],
    ids=["WASP", "SimCC"],
)
def test_trains_and_infers_in_a_model(tiny_cfg, make_batch, roi_heads, opts):
    keys = [f"MODEL.ROI_KEYPOINT_HEAD.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NAME", roi_heads, *keys))
    batch = make_batch(*BOXES)
    with EventStorage():
        sum(model.train()(batch).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        assert model.eval().inference(batch)[0]["instances"].pred_keypoints.shape == (5, 17, 3)


KEYS = {
    "heatmap, oks": ["NAME", "HeatmapKeypointHead", "DECODING", "oks"],
    "WASP": ["NAME", "HeatmapKeypointHead", "WASP_RATES", "[1, 2]", "NORM", "BN"],
    "SimCC": ["NAME", "SimCCKeypointHead"],
}


@pytest.fixture
def make_model(tiny_cfg):
    def make(head, *opts):
        cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "FusedROIHeads", *opts)
        cfg.MODEL.ROI_KEYPOINT_HEAD.merge_from_list(KEYS[head])
        torch.manual_seed(0)
        return build_model(cfg).eval()

    return make


@pytest.mark.parametrize("head", KEYS)
def test_an_accelerated_model_gives_the_same_keypoints(make_model, make_batch, head):
    model, batch = make_model(head), make_batch(*BOXES)
    fast = accelerate(model, bf16=False)
    assert fast.acceleration.steps["keypoints"].startswith("decoded at once by ")
    with torch.no_grad():
        expected, got = (m.inference(batch)[0]["instances"] for m in (model, fast))
        assert accelerate(model, bf16=True).inference(batch)[0]["instances"].has("pred_keypoints")
    torch.testing.assert_close(got.pred_keypoints, expected.pred_keypoints, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("head", ["WASP", "SimCC"])
def test_scripts_with_the_stock_decoding(make_model, make_batch, head):
    from detectron2.export import scripting_with_instances

    model = make_model(head, "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", "1.25")
    fields = {"proposal_boxes": Boxes, "pred_boxes": Boxes}
    tensors = ["objectness_logits", "pred_classes", "scores", "pred_masks", "pred_keypoints"]
    fields |= dict.fromkeys([*tensors, "pred_keypoint_heatmaps"], torch.Tensor)
    inputs = [{"image": make_batch(*BOXES)[0]["image"]}]
    with torch.no_grad():
        expected = model.inference(inputs, do_postprocess=False)[0]
        got = scripting_with_instances(model, fields).inference(inputs, do_postprocess=False)[0]
        torch.testing.assert_close(got.pred_keypoints, expected.pred_keypoints)
        # Scripting changes the model: another one.
        scripted = scripting_with_instances(
            make_model(head, "MODEL.ROI_KEYPOINT_HEAD.DECODING", "dark"), fields
        )
        with pytest.raises(torch.jit.Error, match="TorchScript has the keypoint decoding 'stock' only"):
            scripted.inference(inputs, do_postprocess=False)


def test_a_lazy_config_takes_our_heads():
    cfg = model_zoo.get_config("COCO-MultiTask/mask_keypoint_rcnn_R_50_FPN.py")
    overrides = {
        "_target_": "mrcnn_ext.modeling.FusedROIHeads",
        "keypoint_samples_per_image": 8,
        "keypoint_box_scale": 1.2,
        "keypoint_head.conv_dims": [16],
        "keypoint_head.wasp_rates": [1, 2],
        "keypoint_head.decoding": "oks",
        "keypoint_head.num_keypoints": 3,
        "keypoint_head.oks_sigmas": [0.1, 0.1, 0.05],
    }
    lines = [f"model.roi_heads.{key}={value}" for key, value in overrides.items()]
    heads = instantiate(LazyConfig.apply_overrides(cfg, lines).model.roi_heads)
    assert (heads.keypoint_samples_per_image, heads.keypoint_box_scale) == (8, 1.2)
    assert heads.keypoint_head.oks_sigmas.tolist() == pytest.approx([0.1, 0.1, 0.05])
    assert len(heads.keypoint_head.wasp.branches) == 2
