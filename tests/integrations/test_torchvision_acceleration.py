import copy

import pytest
import small_detectors
import torch
from small_detectors import SETTINGS
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.roi_heads import RoIHeads, paste_masks_in_image
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedConv2d, FusedModule, restore
from mrcnn_ext.integrations.torchvision import (
    FusedMultiScaleRoIAlign,
    FusedRoIHeads,
    FusedTransform,
    mask_keypoint_rcnn,
)
from mrcnn_ext.integrations.torchvision.mask_pasting import paste_masks
from mrcnn_ext.layers import LazyMasks

BATCH_NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def assert_norms_are_folded(model):
    """No normalisation is called by itself."""
    calls = []
    for layer in model.modules():
        if isinstance(layer, BATCH_NORMS):
            layer.register_forward_hook(lambda module, args, output: calls.append(module))
    with torch.no_grad():
        model(images(next(model.parameters()).dtype))
    assert not calls and any(isinstance(layer, FusedConv2d) for layer in model.modules())


def settled(model, dtype):
    return small_detectors.settled(model.to(dtype), images(dtype))


def images(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator).to(dtype) for size in ((64, 96), (60, 64))]


def assert_same_answers(model, fast, dtype):
    """Equal to 1e-4 of what is largest: a score or mask of 1, a coordinate of the image's size."""
    with torch.no_grad():
        expected, found = model(images(dtype)), fast(images(dtype))
    for a, b in zip(expected, found, strict=True):
        assert set(a) == set(b) and len(a["boxes"]) == 4
        for key, value in a.items():
            tolerance = 1e-4 * max(value.abs().max().item(), 1)
            torch.testing.assert_close(b[key], value, rtol=0, atol=tolerance, check_dtype=False)


@pytest.fixture(scope="module")
def mask_model():
    torch.manual_seed(0)
    return settled(maskrcnn_resnet50_fpn(**SETTINGS, num_classes=4), torch.float64)


def test_mask_rcnn_gives_the_same_results(mask_model):
    before = copy.deepcopy(mask_model.state_dict())
    fast = accelerate(mask_model)
    assert_norms_are_folded(fast)
    assert isinstance(fast.roi_heads.mask_roi_pool, FusedMultiScaleRoIAlign)
    assert fast.backbone.body.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert_same_answers(mask_model, fast, torch.float64)
    # The model itself stays as it was.
    assert type(mask_model.roi_heads) is RoIHeads
    assert type(mask_model.roi_heads.box_roi_pool) is MultiScaleRoIAlign
    assert all(torch.equal(weight, before[name]) for name, weight in mask_model.state_dict().items())


def test_float32_answers_are_as_near_the_exact_ones_as_torchvisions(mask_model):
    model = copy.deepcopy(mask_model).float()
    with torch.no_grad():
        exact = mask_model(images(torch.float64))
        stock, ours = (m(images(torch.float32)) for m in (model, accelerate(model, bf16=False)))
    for image in range(2):
        for key, value in exact[image].items():
            stock_error, our_error = ((answers[image][key] - value).abs().max() for answers in (stock, ours))
            assert our_error <= 3 * stock_error + 1e-4, key


def test_frozen_batch_norms_are_folded(mask_model):
    model = copy.deepcopy(mask_model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(layer.num_features, layer.eps).double()
            frozen.load_state_dict(layer.state_dict())
            model.set_submodule(name, frozen)
    fast = accelerate(model)
    assert_norms_are_folded(fast)
    assert_same_answers(mask_model, fast, torch.float64)


def test_keypoint_rcnn_gives_the_same_answers():
    torch.manual_seed(0)
    model = settled(keypointrcnn_resnet50_fpn(**SETTINGS), torch.float64)
    assert_same_answers(model, accelerate(model), torch.float64)


def test_batch_norms_of_the_heads_and_the_pyramid_are_folded():
    torch.manual_seed(0)
    model = settled(maskrcnn_resnet50_fpn_v2(**SETTINGS, num_classes=4), torch.float64)
    fast = accelerate(model)
    assert_norms_are_folded(fast)
    assert_same_answers(model, fast, torch.float64)


def test_models_of_our_parts(make_backbone):
    torch.manual_seed(0)
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("weights")}
    model = settled(mask_keypoint_rcnn(make_backbone(), 4, **settings), torch.float64)
    fast = accelerate(model)
    assert_norms_are_folded(fast)
    assert_same_answers(model, fast, torch.float64)


def test_it_keeps_its_state_dict_and_trains(mask_model):
    fast = accelerate(mask_model)
    assert list(fast.state_dict()) == list(mask_model.state_dict())
    mask_model.load_state_dict(fast.state_dict())
    fast.load_state_dict(mask_model.state_dict())
    assert_same_answers(mask_model, fast, torch.float64)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 50.0]], dtype=torch.float64)
    target = {"boxes": boxes, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}
    losses = fast.train()(images(torch.float64)[:1], [target])
    sum(losses.values()).backward()
    assert fast.roi_heads.mask_head[0][0].weight.grad.abs().sum() > 0


def test_images_in_which_nothing_is_found():
    model = keypointrcnn_resnet50_fpn(**{**SETTINGS, "box_score_thresh": 1.1}).eval()
    with torch.no_grad():
        output = accelerate(model)(images(torch.float32))
    assert [image["keypoints"].shape for image in output] == [(0, 17, 3)] * 2
    assert [image["keypoints_scores"].shape for image in output] == [(0, 17)] * 2


def test_twice_is_once(mask_model):
    assert_same_answers(mask_model, accelerate(accelerate(mask_model)), torch.float64)


def test_a_norm_whose_convolution_is_used_elsewhere_stays(mask_model):
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.out_channels = 4

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    backbone = Fork().eval()
    backbone.norm.running_var.fill_(4)
    model = copy.deepcopy(mask_model).float()
    model.backbone = copy.deepcopy(backbone)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            accelerate(model, bf16=False).backbone(x), backbone(x), rtol=1e-4, atol=1e-4
        )


class SharedLayers(nn.Module):
    """A convolution for two levels, with one normalisation for both or one for each."""

    def __init__(self, norms):
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 4, 3, padding=1), nn.ModuleList(norms)
        self.first, self.first_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.out_channels = 4

    def forward(self, x):
        x = self.first_norm(self.first(x))
        for norm in self.norms:
            x = norm(input=self.conv(x)) if norm is self.norms[-1] else norm(self.conv(x))
        return x


@pytest.mark.parametrize("own", [True, False])
def test_layers_that_are_called_twice_are_not_folded(mask_model, own):
    shared = nn.BatchNorm2d(4)
    backbone = SharedLayers(
        [nn.BatchNorm2d(4), nn.BatchNorm2d(4), shared] if own else [shared, shared, shared]
    )
    for name, value in backbone.state_dict().items():
        if "norm" in name and value.is_floating_point():
            value.uniform_(0.5, 2)
    model = copy.deepcopy(mask_model).float()
    model.backbone = copy.deepcopy(backbone).eval()
    backbone.eval()
    folded = accelerate(model, bf16=False).backbone
    assert "norm=first_norm" in str(folded.first) and "norm" not in str(folded.conv)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), backbone(x), rtol=1e-4, atol=1e-4)


def test_layers_that_cannot_be_followed(mask_model):
    class Branch(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    model = copy.deepcopy(mask_model).float()
    model.backbone = Branch(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    fast = accelerate(model, bf16=True)
    assert fast.acceleration.steps["bf16"].endswith("by autocast: backbone (1 layers fused)")
    assert isinstance(fast.backbone.get_submodule("0"), FusedConv2d)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(fast.backbone(x).float(), model.backbone(x), rtol=0.02, atol=0.02)


def test_models_without_roi_heads():
    with pytest.raises(TypeError, match="got RetinaNet"):
        accelerate(retinanet_resnet50_fpn(weights=None, weights_backbone=None))


def test_faster_rcnn():
    torch.manual_seed(0)
    model = settled(fasterrcnn_resnet50_fpn(**SETTINGS), torch.float64)
    assert_same_answers(model, accelerate(model), torch.float64)


def test_two_maps_of_one_scale():
    """MobileNetV3's pyramid, of which torchvision pools from the first map."""
    torch.manual_seed(0)
    model = settled(fasterrcnn_mobilenet_v3_large_fpn(**SETTINGS), torch.float64)
    fast = accelerate(model)
    assert fast.acceleration.steps["pooler"] == "1 replaced"
    assert_same_answers(model, fast, torch.float64)


def test_every_step_is_reported_and_can_be_left_out(mask_model):
    fast = accelerate(mask_model)
    steps = fast.acceleration.steps
    assert steps["detections"] == "proposals, detections" and steps["masks"] == "pasted within their boxes"
    names = ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head", "roi_heads.mask_predictor")
    assert steps["convolutions"].endswith(": " + ", ".join(names))
    text = str(fast)
    for name in ("FusedRPN(", "FusedRoIHeads(", "FusedFeaturePyramid(", "FusedBottleneck(", "FusedRPNHead("):
        assert name in text
    for step in ("pooler", "channels_last", "convolutions", "detections", "masks"):
        without = accelerate(mask_model, **{step: False})
        assert without.acceleration.steps[step] == "off"
        assert_same_answers(mask_model, without, torch.float64)


def test_in_bf16_the_features_are_close_and_the_results_float32(mask_model):
    model = copy.deepcopy(mask_model).float()
    fast = accelerate(model, bf16=True)
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, ours = model.backbone(x), fast.backbone(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.backbone(x)
        for name, value in expected.items():
            assert ours[name].dtype == torch.bfloat16
            assert (ours[name].float() - value).std() < 1.1 * (rounded[name].float() - value).std()
        for image in fast(images(torch.float32)):
            assert len(image["boxes"]) == 4
            assert all(value.dtype in (torch.float32, torch.int64) for value in image.values())


def test_lazy_masks_are_those_pasted(mask_model):
    lazy, pasted = (accelerate(mask_model, masks=masks) for masks in ("lazy", True))
    with torch.no_grad():
        for a, b in zip(lazy(images(torch.float64)), pasted(images(torch.float64)), strict=True):
            assert isinstance(a["masks"], LazyMasks) and a["masks"].shape == b["masks"][:, 0].shape
            differing = a["masks"].tensor != (b["masks"][:, 0] > 0.5)
            assert differing.float().mean() < 1e-3 and a["masks"].tensor.any()
    assert isinstance(accelerate(mask_model, masks="auto").transform, FusedTransform)
    assert accelerate(mask_model, masks="auto").transform.lazy


@pytest.mark.parametrize("size", [(40, 30), (64, 96)])
def test_pasted_masks_are_torchvisions_bit_for_bit(size):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(30, 2, generator=generator) * 40 - 10  # torchvision fails at boxes off the image
    boxes = torch.cat([corners, corners + 10 + torch.rand(30, 2, generator=generator) * 60], dim=1)
    boxes[:, :2].clamp_(max=29)
    boxes[0, :2], boxes[0, 2:] = 5, 5
    masks = torch.rand(30, 1, 28, 28, generator=generator)
    expected = paste_masks_in_image(masks, boxes, size)
    result = paste_masks(masks, boxes, size)
    assert torch.equal(result, expected) and result.any()
    assert paste_masks(masks[:0], boxes[:0], size).shape == (0, 1, *size)


def test_targets_of_training_are_torchvisions(mask_model):
    model = copy.deepcopy(mask_model).float().train()
    fast = accelerate(model)
    assert fast.acceleration.steps["targets"] == "anchors matched in blocks" and fast.training
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(3000, 2, generator=generator) * 90
    anchors = torch.cat([corners, corners + 4 + 40 * torch.rand(3000, 2, generator=generator)], dim=1)
    targets = [{"boxes": anchors[::300] + 1.5}, {"boxes": anchors[:0]}]
    stock = model.rpn.assign_targets_to_anchors([anchors, anchors], targets)
    ours = fast.rpn.assign_targets_to_anchors([anchors, anchors], targets)
    for labels, expected in zip(ours[0], stock[0], strict=True):
        assert torch.equal(labels, expected)
    for boxes, labels, expected in zip(ours[1], stock[0], stock[1], strict=True):
        assert torch.equal(boxes[labels == 1], expected[labels == 1])
    assert {-1.0, 0.0, 1.0} == set(stock[0][0].tolist())


def test_training_in_float32_has_torchvisions_losses(mask_model):
    model = copy.deepcopy(mask_model).float().train()
    box = torch.tensor([[8.0, 8.0, 60.0, 50.0]])
    target = {"boxes": box, "labels": torch.tensor([1]), "masks": torch.ones(1, 64, 96, dtype=torch.uint8)}
    losses = []
    for m in (model, accelerate(model)):
        torch.manual_seed(1)
        losses.append({k: v.item() for k, v in m(images(torch.float32)[:1], [copy.deepcopy(target)]).items()})
    assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-5)


def test_a_refused_call_and_working_in_place(mask_model):
    model = copy.deepcopy(mask_model).float()
    with pytest.raises(ValueError, match='masks must be True, False, "auto" or "lazy"'):
        accelerate(model, masks="rle", copy=False)
    assert type(model.roi_heads) is RoIHeads
    assert accelerate(model, copy=False) is model and isinstance(model.roi_heads, FusedRoIHeads)
    stock = restore(model)
    assert type(stock.roi_heads) is RoIHeads and not any(isinstance(m, FusedModule) for m in stock.modules())
