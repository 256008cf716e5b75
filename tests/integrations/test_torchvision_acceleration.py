import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedConv2d
from mrcnn_ext.integrations.torchvision import FusedMultiScaleRoIAlign, mask_keypoint_rcnn

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


SETTINGS = {
    "weights": None,
    "weights_backbone": None,
    "min_size": 64,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 16,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 4,
}


def settled(model, dtype):
    """Gives a model of random weights the statistics of its features, without which they would explode."""
    model = model.to(dtype).eval()
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.train()
        layer.momentum = 1.0
    with torch.no_grad():
        model(images(dtype))
    return model.eval()


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


def test_mask_rcnn_gives_the_same_answers(mask_model):
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
