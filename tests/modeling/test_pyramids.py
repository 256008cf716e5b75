"""PAFPN and the simple feature pyramid: what they compute, over which networks, and accelerated."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.events import EventStorage

from mrcnn_ext.benchmark.model import calibrate, random_picture
from mrcnn_ext.modeling import PAFPN, SimpleFeaturePyramid, TimmBackbone, accelerate

pytestmark = pytest.mark.detectron2

IN_FEATURES = ["res2", "res3", "res4", "res5"]
SMALL = {"model_name": "resnet18", "model_args": {"channels": [8, 8, 16, 16]}}
VIT = {"model_name": "vit_tiny_patch16_224", "model_args": {"depth": 3, "embed_dim": 48}}
SIMPLE_PYRAMID = [
    *("MODEL.BACKBONE.NAME", "build_timm_simple_pyramid_backbone", "MODEL.FPN.NORM", "LN"),
    *("MODEL.TIMM.OUT_FEATURES", ["res4"], "MODEL.FPN.IN_FEATURES", ["res4"]),
]


def make(cfg, with_vit=False):
    if with_vit:
        cfg.MODEL.TIMM.NAME = VIT["model_name"]
        cfg.MODEL.TIMM.ARGS.clear()
        cfg.MODEL.TIMM.ARGS.update(VIT["model_args"])
    torch.manual_seed(0)
    return build_model(cfg)


def test_the_path_goes_up_from_the_finest_level():
    torch.manual_seed(0)
    pyramid = PAFPN(TimmBackbone(**SMALL), IN_FEATURES, 8, top_block=LastLevelMaxPool()).eval()
    fpn = FPN(pyramid.bottom_up, IN_FEATURES, 8).eval()
    missing = fpn.load_state_dict(pyramid.state_dict(), strict=False)
    assert not missing.missing_keys  # FPN's parameters have FPN's names
    assert {key.split(".")[0] for key in missing.unexpected_keys} == {
        f"pafpn_{name}{level}" for name in ("down", "output") for level in (3, 4, 5)
    }
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        levels, got = fpn(x), pyramid(x)
        expected = {"p2": levels["p2"]}
        for finer, level in (("p2", "p3"), ("p3", "p4"), ("p4", "p5")):
            down, output = (getattr(pyramid, f"pafpn_{name}{level[1]}") for name in ("down", "output"))
            stepped = torch.relu(
                torch.nn.functional.conv2d(expected[finer], down.weight, down.bias, stride=2, padding=1)
            )
            merged = levels[level] + stepped
            expected[level] = torch.relu(
                torch.nn.functional.conv2d(merged, output.weight, output.bias, padding=1)
            )
        expected["p6"] = expected["p5"][..., ::2, ::2]
    assert list(got) == list(expected)
    for name, level in expected.items():
        torch.testing.assert_close(got[name], level)
    strides = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert pyramid.output_shape() == {n: ShapeSpec(channels=8, stride=s) for n, s in strides.items()}
    assert all((conv.weight.std() > 0.05) for conv in pyramid.downs)  # as msra_fill makes it


def test_a_top_block_reads_the_pyramid():
    with pytest.raises(ValueError, match="top_block reads 'res5', and the levels .* are p2, p3, p4, p5"):
        PAFPN(TimmBackbone(**SMALL), IN_FEATURES, 8, top_block=LastLevelP6P7(16, 8, in_feature="res5"))


def test_images_of_any_size_under_the_simple_pyramid(tiny_cfg):
    model = make(tiny_cfg(*SIMPLE_PYRAMID), with_vit=True).eval()
    assert isinstance(model.backbone, SimpleFeaturePyramid)
    images = model.preprocess_image([{"image": random_picture((70, 100), 0)}])
    assert images.tensor.shape[-2:] == (96, 128)
    features = model.backbone(images.tensor)
    assert {name: tuple(f.shape[-2:]) for name, f in features.items()} == {
        f"p{level}": (-(-96 // 2**level), -(-128 // 2**level)) for level in range(2, 7)
    }
    assert model.backbone.padding_constraints == {"size_divisibility": 32, "square_size": 0}


@pytest.mark.parametrize(
    "options", [(), ("MODEL.FPN.IN_FEATURES", ["res3", "res4"]), ("MODEL.FPN.IN_FEATURES", ["res5"])]
)
def test_a_simple_pyramid_has_one_map_of_stride_16(tiny_cfg, options):
    cfg = tiny_cfg("MODEL.BACKBONE.NAME", "build_timm_simple_pyramid_backbone", *options)
    with pytest.raises(ValueError, match=r'one map of stride 16: set MODEL.TIMM.OUT_FEATURES \["res4"\]'):
        build_backbone(cfg)


CASES = {
    "resnet": ["MODEL.BACKBONE.NAME", "build_resnet_pafpn_backbone"],
    "resnet with norms": ["MODEL.BACKBONE.NAME", "build_resnet_pafpn_backbone", "MODEL.FPN.NORM", "BN"],
    "timm": ["MODEL.BACKBONE.NAME", "build_timm_pafpn_backbone"],
    "vit": SIMPLE_PYRAMID,
}


@pytest.mark.parametrize("case", CASES)
def test_they_train_and_accelerated_they_give_the_same_features(tiny_cfg, make_batch, case):
    model = make(tiny_cfg(*CASES[case]), with_vit=case == "vit")
    with EventStorage():
        losses = model.train()(make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], size=(64, 96)))
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.backbone.parameters())

    model.eval().requires_grad_(False)
    images = [{"image": random_picture((96, 128), 0)}]
    calibrate(model, images)
    x = model.preprocess_image(images).tensor
    expected = model.backbone(x)
    for bf16, tolerance in ((False, 1e-4), (True, 0.15)):
        fast = accelerate(model, bf16=bf16)
        got = fast.backbone(x)
        assert list(got) == list(expected)
        for name, feature in expected.items():
            assert (got[name].float() - feature).norm() < tolerance * feature.norm(), (bf16, name)
    report = fast.acceleration.steps["convolutions"]
    assert " backbone," in report, report
    if case != "vit":
        assert type(fast.backbone).__name__ == "FusedPAFPN"
        assert type(fast.backbone.pafpn_down3).__name__ == "FusedConv2d"
    assert fast.backbone.state_dict().keys() == model.backbone.state_dict().keys()
