import copy

import pytest
import torch

from mrcnn_ext.integrations.torchvision import keypoint_rcnn, mask_keypoint_rcnn, transfer_weights
from mrcnn_ext.integrations.torchvision.weights import COMPONENTS

pytest.importorskip("detectron2")
import yaml  # noqa: E402
from detectron2.config import get_cfg  # noqa: E402
from detectron2.modeling import build_model as build_detectron2_model  # noqa: E402
from detectron2.structures import Boxes  # noqa: E402

from mrcnn_ext import add_mrcnn_ext_config  # noqa: E402
from mrcnn_ext.model_zoo import get_config_file  # noqa: E402
from mrcnn_ext.studies.quickstart_torchvision import build_model as build_torchvision_model  # noqa: E402

pytestmark = pytest.mark.detectron2

CONFIG = get_config_file("quickstart.yaml")


@pytest.fixture(scope="module")
def originals():
    torch.manual_seed(0)
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(CONFIG)
    detectron2_model = build_detectron2_model(cfg).eval()
    with open(CONFIG) as file:
        torchvision_model = build_torchvision_model(yaml.safe_load(file)).eval()
    # Nothing at its initial zero or one, or a forgotten weight would not be noticed.
    for model in (detectron2_model, torchvision_model):
        for weight in model.state_dict().values():
            if weight.is_floating_point():
                weight.add_(0.05 * torch.rand_like(weight))
    return detectron2_model, torchvision_model


@pytest.fixture
def models(originals):
    return copy.deepcopy(originals)


def outputs_agree(detectron2_model, torchvision_model):
    """Every network of both on the same input, to 1e-6 of the output's size."""
    image = torch.rand(1, 3, 64, 96)
    pooled, flat = torch.rand(4, 64, 14, 14), torch.rand(4, 64, 7, 7)
    with torch.no_grad():
        pyramid = detectron2_model.backbone(image)
        theirs = torchvision_model.backbone(image)
        assert_close(pyramid.values(), theirs.values())

        logits, deltas = detectron2_model.proposal_generator.rpn_head(list(pyramid.values()))
        their_logits, their_deltas = torchvision_model.rpn.head(list(pyramid.values()))
        assert_close([*logits, *deltas], [*their_logits, *their_deltas])

        heads, their_heads = detectron2_model.roi_heads, torchvision_model.roi_heads
        scores, boxes = heads.box_predictor(heads.box_head(flat))
        their_scores, their_boxes = their_heads.box_predictor(their_heads.box_head(flat))
        assert_close([scores.roll(1, 1), boxes], [their_scores, their_boxes[:, 4:]])

        assert_close([heads.mask_head.layers(pooled)], [their_heads.mask_head(pooled)])
        assert_close([heads.keypoint_head.layers(pooled)], [their_heads.keypoint_head(pooled)])


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * a.abs().max().item())


def test_from_detectron2_to_torchvision(models):
    with pytest.raises(AssertionError):
        outputs_agree(*models)
    assert transfer_weights(*models) == list(COMPONENTS)
    outputs_agree(*models)


def test_from_torchvision_to_detectron2(models):
    detectron2_model, torchvision_model = models
    assert transfer_weights(torchvision_model, detectron2_model) == list(COMPONENTS)
    outputs_agree(*models)


def test_there_and_back_changes_no_weight(models):
    detectron2_model, torchvision_model = models
    before = copy.deepcopy(detectron2_model.state_dict())
    transfer_weights(detectron2_model, torchvision_model)
    for weight in detectron2_model.state_dict().values():
        weight.zero_()
    transfer_weights(torchvision_model, detectron2_model)
    assert all(torch.equal(weight, before[name]) for name, weight in detectron2_model.state_dict().items())


def test_both_pool_the_same_from_the_same_boxes(models):
    detectron2_model, torchvision_model = models
    features = [torch.rand(1, 64, 24 >> level, 40 >> level) for level in range(4)]
    boxes = torch.tensor([[10.0, 12.0, 60.0, 80.0], [0.0, 0.0, 150.0, 90.0]])
    for name in ("box", "mask", "keypoint"):
        pooler = getattr(detectron2_model.roi_heads, f"{name}_pooler")
        their_pooler = getattr(torchvision_model.roi_heads, f"{name}_roi_pool")
        pyramid = {str(level): feature for level, feature in enumerate(features)}
        assert_close([pooler(features, [Boxes(boxes)])], [their_pooler(pyramid, [boxes], [(96, 160)])])


def test_only_the_parts_asked_for(models):
    detectron2_model, torchvision_model = models
    before = copy.deepcopy(torchvision_model.state_dict())
    assert transfer_weights(detectron2_model, torchvision_model, ["mask"]) == ["mask"]
    changed = {
        name
        for name, weight in torchvision_model.state_dict().items()
        if not torch.equal(weight, before[name])
    }
    assert changed and all(name.startswith("roi_heads.mask_head.") for name in changed)


def test_another_network(models):
    detectron2_model, torchvision_model = models
    other = mask_keypoint_rcnn(copy.deepcopy(torchvision_model.backbone), 9)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ValueError, match="mask networks .* only one of them has.* roi_heads.mask_head.mask_fcn4"
    ):
        transfer_weights(detectron2_model, other, ["backbone", "mask"])
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


def test_shapes_that_differ(models):
    detectron2_model, torchvision_model = models
    with torch.no_grad():
        torchvision_model.roi_heads.mask_head.predictor = torch.nn.Conv2d(64, 3, 1)
    with pytest.raises(ValueError, match=r"predictor.* shape \(3.*source gives\s\(8"):
        transfer_weights(detectron2_model, torchvision_model, ["mask"])


def test_a_part_that_a_model_lacks(models):
    detectron2_model, torchvision_model = models
    boxes_and_keypoints = keypoint_rcnn(torchvision_model.backbone, 9)
    with pytest.raises(ValueError, match="target has no weights of 'mask'"):
        transfer_weights(detectron2_model, boxes_and_keypoints, ["mask"])


def test_an_unknown_part(models):
    with pytest.raises(ValueError, match="unknown 'masks'.*mask"):
        transfer_weights(*models, ["masks"])


def test_two_models_of_one_host(models):
    with pytest.raises(TypeError, match="both models of torchvision"):
        transfer_weights(models[1], models[1])
    with pytest.raises(TypeError, match="Linear is neither"):
        transfer_weights(torch.nn.Linear(1, 1), models[1])
