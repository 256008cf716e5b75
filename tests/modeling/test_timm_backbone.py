"""timm models as backbones: features, freezing, weights, and what does not work."""

import pytest
import timm
import torch

pytest.importorskip("detectron2")
from detectron2.config import LazyCall as L
from detectron2.config import get_cfg, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BitMasks
from detectron2.utils.events import EventStorage

from mrcnn_ext.modeling import TimmBackbone

pytestmark = pytest.mark.detectron2

SMALL = {"channels": [8, 8, 16, 16]}  # a resnet18 with few channels


def small(**kwargs):
    return TimmBackbone(**{"model_name": "resnet18", "model_args": SMALL, **kwargs})


@pytest.mark.parametrize(
    "model_name, model_args",
    [
        ("resnet18", SMALL),
        ("convnext_atto", {"depths": [1, 1, 1, 1]}),
        ("efficientnet_b0", {}),
        ("regnety_002", {}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False, "depths": [1, 1, 1, 1], "embed_dim": 24}),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_features_have_the_promised_shapes(model_name, model_args, memory_format):
    torch.manual_seed(0)
    backbone = TimmBackbone(model_name=model_name, model_args=model_args).eval()
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {f"res{k}": 2**k for k in range(2, 6)}
    x = torch.randn(2, 3, 64, 96)
    features = backbone.to(memory_format=memory_format)(x.to(memory_format=memory_format))
    for name, shape in shapes.items():
        assert features[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    reference = backbone.to(memory_format=torch.contiguous_format)(x)
    for name in shapes:
        torch.testing.assert_close(features[name], reference[name], rtol=1e-4, atol=1e-4)


def test_features_are_timms_own():
    torch.manual_seed(0)
    backbone = small(out_features=["c3", "c5"]).eval()
    torch.manual_seed(0)
    reference = timm.create_model("resnet18", features_only=True, **SMALL).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = reference(x)
    assert list(backbone(x)) == ["c3", "c5"]
    assert torch.equal(backbone(x)["c3"], expected[2]) and torch.equal(backbone(x)["c5"], expected[4])


def test_stages_after_the_last_feature_are_not_built():
    names = [name for name, _ in small(out_features=["res4"]).net.named_children()]
    assert "layer3" in names and "layer4" not in names


def trainable(backbone):
    return {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "freeze_at, frozen",
    [
        (0, set()),
        (1, {"conv1", "bn1"}),
        (2, {"conv1", "bn1", "layer1"}),
        (3, {"conv1", "bn1", "layer1", "layer2"}),
    ],
)
@pytest.mark.parametrize("out_features", [["res2", "res3", "res4", "res5"], ["res4"]])
def test_freeze_at_freezes_the_stem_then_stage_by_stage(freeze_at, frozen, out_features):
    backbone = small(freeze_at=freeze_at, out_features=out_features).train()
    modules = {
        name
        for name, _ in backbone.net.named_children()
        if list(backbone.net.get_submodule(name).parameters())
    }
    assert trainable(backbone) == modules - frozen
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    moved = {k.split(".")[1] for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {m for m in modules - frozen if m != "conv1"}  # the statistics; a convolution has none
    assert not any(m.training for n in frozen for m in backbone.net.get_submodule(n).modules())


@pytest.mark.parametrize(
    "model_name, model_args",
    [
        ("convnext_atto", {}),
        ("efficientnet_b0", {}),
        ("regnety_002", {}),
        ("hiera_tiny_224", {"embed_dim": 16}),
    ],
)
def test_freeze_at_finds_the_stages_of_every_kind_of_model(model_name, model_args):
    whole = TimmBackbone(model_name=model_name, model_args=model_args)
    count = [len(list(whole.parameters()))]
    for freeze_at in (1, 2, 3, 5):
        backbone = TimmBackbone(model_name=model_name, model_args=model_args, freeze_at=freeze_at)
        flags = [p.requires_grad for p in backbone.parameters()]
        count.append(sum(flags))
        assert flags == sorted(flags)  # the first so many are frozen
    assert count == sorted(count, reverse=True) and len(set(count)) == 5 and count[-1] < count[0] / 10


def test_frozen_batch_norm_keeps_statistics_and_affine():
    backbone = small(norm="FrozenBN").train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    sum(f.sum() for f in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    with_grad = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert with_grad == {name for name in before if "conv" in name or "downsample.0" in name}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_from_a_local_file(tmp_path, suffix):
    model = timm.create_model("resnet18", **SMALL)
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), file)
    for out_features in (["res2", "res5"], ["res4"]):
        state = small(weights=str(file), out_features=out_features).net.state_dict()
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())


@pytest.mark.parametrize(
    "content", ["another model", "other names", "other shapes", "no file", "not a checkpoint"]
)
def test_weights_that_are_not_the_models(tmp_path, content):
    file = tmp_path / "weights.pth"
    if content == "another model":
        torch.save(timm.create_model("regnety_002").state_dict(), file)
    elif content == "other names":
        state = timm.create_model("resnet18", **SMALL).state_dict()
        torch.save({f"backbone.{name}": tensor for name, tensor in state.items()}, file)
    elif content == "other shapes":
        torch.save(timm.create_model("resnet18").state_dict(), file)
    elif content == "not a checkpoint":
        file.write_bytes(b"<html>404</html>")
    message = (
        "no file .*weights.pth"
        if content == "no file"
        else "weights.pth does not hold the weights of resnet18"
    )
    with pytest.raises(ValueError, match=message):
        small(weights=str(file))


def test_an_unreachable_hub_says_how_to_do_without(monkeypatch):
    import timm.models._builder as builder

    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(builder, "load_state_dict_from_hf", unreachable)
    monkeypatch.setattr(builder, "load_state_dict_from_url", unreachable)
    with pytest.raises(
        RuntimeError, match="resnet18 could not be fetched .* give a local file .*MODEL.TIMM.WEIGHTS"
    ):
        small(pretrained=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_name": "resnet81"}, "timm has no model 'resnet81'; near it are resnet"),
        (
            {"model_name": "vit_tiny_patch16_224", "model_args": {}},
            r"no feature res2 \(stride 4\).*strides are 16",
        ),
        (
            {"model_args": {**SMALL, "output_stride": 8}},
            r"no feature res4 \(stride 16\), res5 \(stride 32\): its strides are 2, 4, 8",
        ),
        ({"out_features": ["stem"]}, "'stem' must end with the base-two logarithm of its stride"),
        ({"out_features": ["res5", "res4"]}, "from fine to coarse"),
        ({"model_args": {"drop_pth_rate": 0.1}}, "cannot build resnet18 .*drop_pth_rate"),
        ({"norm": "GN"}, "norm must be"),
        ({"model_name": "convnext_atto", "model_args": {}, "norm": "FrozenBN"}, "no batch normalisation"),
        ({"model_name": "hrnet_w18_small", "model_args": {}, "freeze_at": 2}, "no stage of its own"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_a_config_without_our_keys_says_what_to_call():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    with pytest.raises(ValueError, match="call mrcnn_ext.add_mrcnn_ext_config"):
        build_backbone(cfg)


def test_config_sets_every_argument(tiny_cfg):
    cfg = tiny_cfg("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", "2")
    cfg.MODEL.TIMM.OUT_FEATURES, cfg.MODEL.TIMM.NORM = ["res3", "res4"], "FrozenBN"
    cfg.MODEL.TIMM.ARGS.drop_path_rate = 0.5
    backbone = build_backbone(cfg, ShapeSpec(channels=5))
    assert backbone.net.conv1.weight.shape == (64, 5, 7, 7)
    assert {k: v.channels for k, v in backbone.output_shape().items()} == {"res3": 32, "res4": 32}
    assert trainable(backbone) == {"layer2", "layer3"}
    assert not any(m.training for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert backbone.net.layer3[-1].drop_path.drop_prob > 0


def test_lazy_config():
    fpn = L(FPN)(
        bottom_up=L(TimmBackbone)(
            model_name="resnet18", out_features=["res2", "res3", "res4", "res5"], model_args=SMALL
        ),
        in_features="${.bottom_up.out_features}",
        out_channels=16,
        top_block=L(LastLevelMaxPool)(),
    )
    model = instantiate(fpn).eval()
    torch.jit.script(model.bottom_up)  # which fails where a list of the config came through
    features = model(torch.randn(1, 3, 64, 64))
    assert {name: f.shape[-1] for name, f in features.items()} == {
        "p2": 16,
        "p3": 8,
        "p4": 4,
        "p5": 2,
        "p6": 1,
    }


def test_scripts():
    backbone = small().eval()
    x = torch.randn(1, 3, 64, 64)
    scripted = torch.jit.script(backbone)(x)
    for name, feature in backbone(x).items():
        torch.testing.assert_close(scripted[name], feature)


@pytest.mark.parametrize("architecture", ["RetinaNet", "PanopticFPN"])
def test_stock_architectures_take_it(tiny_cfg, make_batch, architecture):
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", architecture, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[8, 8, 24, 30]])
    if architecture == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_timm_retinanet_fpn_backbone"
        cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 3, 0.0
    else:
        cfg.MODEL.KEYPOINT_ON = False
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
        for item in batch:
            assert isinstance(item["instances"].gt_masks, BitMasks)
            item["sem_seg"] = item["instances"].gt_masks.tensor.any(dim=0).long()
    model = build_model(cfg)
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.backbone.parameters())
    with torch.no_grad():
        assert len(model.eval()(batch)[0]["instances"]) > 0
