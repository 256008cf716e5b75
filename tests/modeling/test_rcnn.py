"""R-CNN as ROI heads, its hinge classifiers, and models whose proposals are given."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedModule
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.engine import Predictor, UserError
from mrcnn_ext.export import export_model
from mrcnn_ext.inference import load_predictor
from mrcnn_ext.modeling import CropPooler, HingeOutputLayers, RCNNROIHeads

pytestmark = pytest.mark.detectron2

GIVEN = ("MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "False") + (
    *("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", "True"),
)
CROPS = (
    *("MODEL.BACKBONE.NAME", "build_pixel_backbone", "MODEL.ROI_HEADS.IN_FEATURES", "['pixels']"),
    *("MODEL.ROI_HEADS.NAME", "RCNNROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "CNNBoxHead"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "32", "MODEL.ROI_BOX_HEAD.CONTEXT", "4"),
    *("MODEL.ROI_BOX_HEAD.CNN.NAME", "build_timm_backbone", "MODEL.TIMM.OUT_FEATURES", "['res4']"),
    *("MODEL.ROI_BOX_HEAD.CNN.CROPS_AT_ONCE", "3"),
)
ONE_PASS = ("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool")
HINGE = ("MODEL.ROI_BOX_HEAD.CLASSIFIER", "hinge")
MODELS = {
    "R-CNN": (*GIVEN, *CROPS),
    "R-CNN, hinge": (*GIVEN, *CROPS, *HINGE),
    "Fast R-CNN": (*GIVEN, *ONE_PASS),
    "Faster R-CNN, hinge": (*GIVEN[:4], *ONE_PASS, *HINGE),
}
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


@pytest.fixture
def make_model(tiny_cfg):
    def make(name, *opts):
        torch.manual_seed(0)
        return build_model(tiny_cfg(*MODELS[name], *opts))

    return make


@pytest.fixture
def batch(make_batch):
    return with_proposals(make_batch(BOXES, []))


def with_proposals(batch, count=8):
    generator = torch.Generator().manual_seed(1)
    for given in batch:
        corners = torch.rand(count, 2, generator=generator) * 40
        boxes = torch.cat([corners, corners + 8 + 16 * torch.rand(count, 2, generator=generator)], dim=1)
        given["proposals"] = Instances((64, 80), proposal_boxes=Boxes(boxes), objectness_logits=boxes[:, 0])
    return batch


@pytest.mark.parametrize("name", MODELS)
def test_trains_a_step_and_infers(make_model, batch, name):
    model = make_model(name)
    with EventStorage() as storage:
        losses = model.train()(batch)
    assert {"loss_cls", "loss_box_reg"} <= set(losses) and "fast_rcnn/cls_accuracy" in storage.latest()
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        results = model.eval()(batch)
    assert all(len(result["instances"]) == 5 for result in results)


@pytest.mark.parametrize("name", MODELS)
def test_no_objects_and_no_proposals(make_model, make_batch, name):
    model = make_model(name)
    with EventStorage():
        losses = model.train()(with_proposals(make_batch([], [])))
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0 and all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        if model.proposal_generator is None:
            assert len(model.eval()(with_proposals(make_batch([]), 0))[0]["instances"]) == 0


@pytest.mark.parametrize("name", MODELS)
def test_accelerated_it_gives_the_same(make_model, batch, name):
    model = make_model(name).eval()
    calibrate(model, batch)
    fast = accelerate(model, bf16=False)
    with torch.no_grad():
        for got, expected in zip(fast(batch), model(batch), strict=True):
            got, expected = got["instances"], expected["instances"]
            torch.testing.assert_close(got.scores, expected.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                got.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-2
            )
    network = fast.roi_heads.box_head if "roi_heads.box_head" in str(fast.acceleration) else fast.backbone
    assert any(isinstance(module, FusedModule) for module in network.modules())
    assert list(fast.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", ["R-CNN", "Fast R-CNN", "Faster R-CNN, hinge"])
def test_export_is_refused(make_model, tmp_path, name):
    message = "HingeOutputLayers has no export" if "hinge" in name else "without proposal generator"
    with pytest.raises(NotImplementedError, match=message):
        export_model(make_model(name).eval(), tmp_path / "model.onnx")


def test_predicting_for_images_alone_is_refused(tiny_cfg, tmp_path):
    cfg = tiny_cfg(*MODELS["Fast R-CNN"])
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    for predictor in (Predictor, load_predictor):
        with pytest.raises(
            UserError, match="the proposals of this model are inputs .*, and an image alone has"
        ):
            predictor(cfg)


def test_a_crop_is_the_resized_box_and_its_surroundings():
    ramp = torch.arange(96.0).expand(1, 1, 96, 96)
    crops = CropPooler(32, context=8)([ramp], [Boxes(torch.tensor([[40.0, 40, 56, 56]]))])
    assert crops.shape == (1, 1, 32, 32)
    # 16 pixels of the box fill 16 of the crop: 8 more on each side.
    torch.testing.assert_close(crops[0, 0, 0], torch.arange(32.0) + 32)
    beyond = CropPooler(32, context=0)([ramp + 1], [Boxes(torch.tensor([[-64.0, 0, 0, 64]]))])
    assert beyond[0, 0, :, :-1].abs().max() == 0
    with pytest.raises(ValueError, match="less than half of its side .*, got 16 of 32"):
        CropPooler(32, context=16)


def test_crops_are_taken_by_parts_of_the_same_result(make_model, batch):
    model = make_model("R-CNN").eval()
    with torch.no_grad():
        expected = model(batch)
        model.roi_heads.box_head.crops_at_once = 100
        for got, wanted in zip(model(batch), expected, strict=True):
            torch.testing.assert_close(
                got["instances"].scores, wanted["instances"].scores, rtol=1e-5, atol=1e-6
            )


def test_what_cannot_be_is_said(make_model):
    with pytest.raises(ValueError, match="RCNNROIHeads take crops of the image: set MODEL.BACKBONE.NAME"):
        make_model("Fast R-CNN", "MODEL.ROI_HEADS.NAME", RCNNROIHeads.__name__)
    with pytest.raises(ValueError, match="CNN.FEATURE .* is 'res5', and the backbone gives res4"):
        make_model("R-CNN", "MODEL.ROI_BOX_HEAD.CNN.FEATURE", "res5")
    with pytest.raises(ValueError, match="CLASSIFIER must be 'softmax' or 'hinge', got 'svm'"):
        make_model("Fast R-CNN", "MODEL.ROI_BOX_HEAD.CLASSIFIER", "svm")
    with pytest.raises(ValueError, match="has a loss of its own: set USE_SIGMOID_CE"):
        make_model("Fast R-CNN", *HINGE, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True")


def test_hinge_loss_is_one_against_the_rest(make_model):
    layers = make_model("R-CNN, hinge").roi_heads.box_predictor
    assert isinstance(layers, HingeOutputLayers) and layers.num_classes == 3
    scores = torch.tensor([[2.0, -3, 0.5, 9], [-2, -2, -2, 0], [0, 0, 0, 0]])
    # Margins that are wide enough cost nothing; the background has none of its own.
    loss = layers.hinge_loss(scores, torch.tensor([0, 3, 1]))
    assert loss == pytest.approx((1.5 + 0 + 3) / 3)
    (probabilities,) = layers.predict_probs((scores, None), [Instances((8, 8), x=torch.zeros(3))])
    torch.testing.assert_close(probabilities, torch.sigmoid(4 * scores))
