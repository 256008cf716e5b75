"""Weights from and to elsewhere: safetensors, ResNets for classification, detectron2's and timm's hubs."""

import pickle

import pytest
import torch
import torchvision

pytest.importorskip("detectron2")
from detectron2.modeling import build_backbone
from detectron2.utils.file_io import Detectron2Handler
from torch import nn

from mrcnn_ext import model_zoo
from mrcnn_ext.engine import Checkpointer, UserError
from mrcnn_ext.engine.description import config_of, metadata_of, read_description
from mrcnn_ext.engine.load_report import load_report
from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.engine.weight_files import export_weights, read_weights
from mrcnn_ext.modeling.backbone import TimmBackbone, check_timm_input, follow_timm, timm_input
from mrcnn_ext_command import command

pytestmark = pytest.mark.detectron2

FOLDER = "COCO-InstanceSegmentation"


class Backbone(nn.Module):
    """What of a detector has to do with the weights of its backbone."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)
        self.input_format = cfg.INPUT.FORMAT
        self.pixel_mean, self.pixel_std = (
            torch.tensor(cfg.MODEL.PIXEL_MEAN),
            torch.tensor(cfg.MODEL.PIXEL_STD),
        )


@pytest.fixture
def checkpoint(tmp_path):
    """Of a small layer with a moving average, and a description as `mrcnn_ext.engine.Trainer` writes."""
    cfg = load_config("", ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.WEIGHTS", "start.pth"])
    metadata = {"thing_classes": ["ski", "pole"], "thing_dataset_id_to_contiguous_id": {7: 0, 9: 1}}
    about = {"format": 1, "kind": "yaml", "metadata": metadata, "versions": {}, "config": cfg.dump()}
    weights = {"a.weight": torch.randn(3, 4), "a.bias": torch.zeros(3), "steps": torch.tensor(5)}
    averaged = {name: value + 1 for name, value in weights.items()}
    averaged["tied"] = averaged["a.weight"].t()  # shares memory, and is not contiguous
    path = tmp_path / "model_final.pth"
    torch.save({"model": weights, "averaged_model": averaged, "about": about, "optimizer": {"lr": 0.1}}, path)
    return path, averaged, about


def test_weights_of_a_checkpoint_as_safetensors(checkpoint, tmp_path):
    path, averaged, about = checkpoint
    output = tmp_path / "weights.safetensors"
    assert export_weights(path, output) == 4
    loaded = read_weights(output)
    assert set(loaded) == {"model", "about"} and loaded["model"].keys() == averaged.keys()
    assert all(torch.equal(loaded["model"][name], value) for name, value in averaged.items())
    # It says what the checkpoint says, numbers as numbers.
    assert read_description(str(output)) == about
    assert config_of(about, str(output)).MODEL.ROI_HEADS.NUM_CLASSES == 2
    assert metadata_of(loaded["about"]).thing_dataset_id_to_contiguous_id == {7: 0, 9: 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_final.pth", "weights.safetensors"]


def test_metadata_of_safetensors_run_nothing(tmp_path):
    from safetensors.torch import save_file

    code = f"!!python/object/apply:os.system ['touch {tmp_path}/RUN']"
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"mrcnn_ext": code})
    with pytest.raises(UserError, match="x.safetensors: not a checkpoint, or damaged"):
        read_weights(tmp_path / "x.safetensors")
    assert not (tmp_path / "RUN").exists()


def test_the_command_exports_weights(checkpoint, tmp_path):
    from click.testing import CliRunner

    def run(*words):
        return CliRunner().invoke(command, ["export", *map(str, words)])

    path, averaged, _ = checkpoint
    output = tmp_path / "weights.safetensors"
    result = run("--weights", path, "--output", output)
    assert result.exit_code == 0 and f"{output}: the 4 tensors of {path}" in result.output, result.output
    assert torch.equal(read_weights(output)["model"]["a.weight"], averaged["a.weight"])
    message = str(run("--weights", path, "--output", output, "--config-file", "x.yaml").exception)
    assert "--config-file: a .safetensors file holds the weights as they are" in message
    assert "give the checkpoint" in str(run("--output", output).exception)
    result = run(path, "--output", tmp_path / "again.safetensors")
    assert result.exit_code == 0 and f"the 4 tensors of {path}" in result.output, result.output
    assert "give one checkpoint" in str(run(path, "--weights", path, "--output", output).exception)
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2]))
    message = str(run("--weights", tmp_path / "list.pth", "--output", output).exception)
    assert "list.pth: not a checkpoint" in message
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"model": {}, "matching_heuristics": True}))
    message = str(run("--weights", tmp_path / "caffe2.pkl", "--output", output).exception)
    assert "matched with a model's by likeness" in message


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """torchvision's ResNet-50 with statistics that are no identity, and its state dict in a file."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 0.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path_factory.mktemp("torchvision") / "resnet50.pth"
    torch.save(network.state_dict(), path)
    return network, str(path)


@pytest.mark.parametrize("neck", ["FPN", "C4"])
def test_a_resnet_of_torchvision_is_the_backbone(resnet, neck, caplog):
    network, path = resnet
    cfg = model_zoo.get_config(f"{FOLDER}/mask_rcnn_R_50_FPN_torchvision.yaml")
    if neck == "C4":
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnet_backbone", ["res4"]
    model = Backbone(cfg).eval()
    if neck == "C4":
        model.roi_heads = nn.Module()
        model.roi_heads.res5 = nn.Sequential(nn.Module())
        model.roi_heads.res5[0].conv1 = nn.Conv2d(1024, 512, 1, bias=False)
    with caplog.at_level("INFO"):
        Checkpointer(model, allow_partial=neck == "C4").load(path)
    assert "is a ResNet for classification: its weights get detectron2's names" in caplog.text
    if neck == "FPN":
        assert "resnet50.pth: 265 of the model's 281 tensors are from it (backbone 265 of 281)" in caplog.text
        assert "with initial values: backbone.fpn_lateral2, backbone.fpn_lateral3" in caplog.text
    else:
        assert torch.equal(model.roi_heads.res5[0].conv1.weight, network.layer4[0].conv1.weight)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        got = getattr(model.backbone, "bottom_up", model.backbone)(x)
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for name, layer in zip(("res2", "res3", "res4", "res5"), network.children(), strict=False):
            layer = getattr(network, f"layer{int(name[3]) - 1}")
            x = layer(x)
            if name in got:
                torch.testing.assert_close(got[name], x, rtol=1e-4, atol=1e-4)


def test_a_resnet_of_torchvision_wants_its_input_and_strides(resnet):
    _, path = resnet
    cfg = model_zoo.get_config(f"{FOLDER}/mask_rcnn_R_50_FPN.yaml")
    with pytest.raises(UserError) as error:
        Checkpointer(Backbone(cfg)).load(path)
    for needed in (
        "MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]",
        "MODEL.PIXEL_STD [58.395, 57.12, 57.375]",
        'INPUT.FORMAT "RGB"',
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
        "mask_rcnn_R_50_FPN_torchvision.yaml",
    ):
        assert needed in str(error.value)
    cfg = model_zoo.get_config(f"{FOLDER}/mask_rcnn_timm_convnext_tiny_FPN.yaml")
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.PRETRAINED = "resnet18", False
    with pytest.raises(UserError, match=r"the model's backbone, FPN, is no ResNet .* by MODEL.TIMM.WEIGHTS"):
        Checkpointer(Backbone(cfg)).load(path)


def test_names_of_detectron2s_zoo_are_fetched_by_its_handler(tmp_path, monkeypatch, caplog):
    """Pickles of numpy arrays, by address."""
    source, target = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with open(tmp_path / "R-50.pkl", "wb") as file:
        arrays = {name: value.numpy() for name, value in source.state_dict().items()}
        pickle.dump({"model": arrays, "__author__": "detectron2"}, file)
    asked = []
    monkeypatch.setattr(
        Detectron2Handler,
        "_get_local_path",
        lambda self, path, **kwargs: asked.append(path) or str(tmp_path / "R-50.pkl"),
    )
    with caplog.at_level("INFO"):
        Checkpointer(target).load("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert asked == ["detectron2://ImageNetPretrained/MSRA/R-50.pkl"]
    assert torch.equal(target[0].weight, source[0].weight)
    assert "R-50.pkl: 2 of the model's 4 tensors are from it (0 2 of 2, 1 0 of 2)" in caplog.text


def test_the_report_of_what_was_loaded():
    own = [
        "backbone.a.weight",
        "backbone.a.num_batches_tracked",
        "roi_heads.box.weight",
        "roi_heads.mask.weight",
    ]
    absent = {"roi_heads.mask.weight", "backbone.a.num_batches_tracked"}
    assert load_report("x.pth", own, absent, ["fc.weight", "fc.bias"]) == (
        "x.pth: 2 of the model's 3 tensors are from it (backbone 1 of 1, roi_heads 1 of 2); with initial values: "
        "roi_heads.mask; not used of it: fc"
    )
    assert load_report("x.pth", own, (), ()).endswith("(backbone 1 of 1, roi_heads 2 of 2)")


def test_timms_weights_come_with_their_input_from_hub_and_file(tmp_path, monkeypatch):
    import timm
    import timm.models._builder as builder

    name = "mobilevit_xxs"  # trained on BGR images in 0..1
    torch.manual_seed(0)
    source = timm.create_model(name)
    entries = []
    monkeypatch.setattr(
        builder,
        "load_state_dict_from_hf",
        lambda *args, **kwargs: entries.append(args) or source.state_dict(),
    )
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    for options in (
        ["MODEL.TIMM.PRETRAINED", True],
        ["MODEL.TIMM.WEIGHTS", str(tmp_path / "weights.pth")],
    ):
        cfg = load_config("", ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.WEIGHTS", "", *options])
        assert cfg.MODEL.TIMM.INPUT == "config"  # followed already: resnet50's
        cfg.MODEL.TIMM.INPUT, cfg.MODEL.TIMM.NAME = "auto", name
        with pytest.raises(ValueError, match=f"the weights of {name} of timm need .*PIXEL_MEAN"):
            follow_timm(cfg)
        wanted = timm_input(name)
        cfg.INPUT.FORMAT = wanted["input_format"]
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = wanted["pixel_mean"], wanted["pixel_std"]
        assert follow_timm(cfg) == []
        backbone = build_backbone(cfg)
        own = backbone.net.state_dict()
        expected = source.state_dict()
        assert all(torch.equal(v, expected[k.replace("stages_", "stages.")]) for k, v in own.items())
    assert len(entries) == 1


def test_another_input_than_that_of_timms_weights_is_refused():
    options = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.PRETRAINED", True]
    options += ["MODEL.WEIGHTS", "", "MODEL.PIXEL_STD", [58.395, 57.12, 57.375]]
    with pytest.raises(
        UserError,
        match=r'of resnet50 of timm need INPUT.FORMAT "RGB", not .BGR., MODEL.PIXEL_MEAN \[123.675, .*\], not '
        r'\[103.53, .*; to have it all the same, set MODEL.TIMM.INPUT "config"',
    ):
        load_config("", options)
    cfg = load_config("", [*options, "MODEL.TIMM.INPUT", "config"])
    assert cfg.INPUT.FORMAT == "BGR"
    # A checkpoint's weights are of its own input.
    options[5] = "model_final.pth"
    assert load_config("", options).INPUT.FORMAT == "BGR"


def test_a_lazy_config_with_another_input_is_refused():
    names = [name for name in model_zoo.list_configs() if "timm" in name and name.endswith(".py")]
    assert len(names) >= 5
    for name in names:
        check_timm_input(model_zoo.get_config(name))
    cfg = model_zoo.get_config(f"{FOLDER}/mask_rcnn_timm_vit_small_SFP_LSJ_3x.py")
    cfg.dataloader.train.mapper.image_format = "BGR"
    cfg.model.pixel_std = [1.0, 1.0, 1.0]
    with pytest.raises(
        ValueError,
        match=r'need dataloader.train.mapper.image_format "RGB", not .BGR., model.pixel_std .*timm_input\(.vit_small',
    ):
        check_timm_input(cfg)
    for key, value in (("timm_input", "config"), ("init_checkpoint", "model_final.pth")):
        other = cfg.copy()
        other.train[key] = value
        check_timm_input(other)
    cfg.model.backbone.net.pretrained = False
    check_timm_input(cfg)
    assert cfg.model.backbone.net._target_ is TimmBackbone
