"""Exported detectors: the answers of the model they were made from."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("detectron2")
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from mrcnn_ext import accelerate, add_mrcnn_ext_config
from mrcnn_ext.cli import export as cli_export
from mrcnn_ext.export import ExportedModel, export_model
from mrcnn_ext.export.files import _difference

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.detectron2

LEVELS = "['res2', 'res3', 'res4', 'res5']"
STOCK = (
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"),
    *("MODEL.PIXEL_STD", "[57.375, 57.120, 58.395]", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.OUT_FEATURES", LEVELS, "MODEL.FPN.IN_FEATURES", LEVELS),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']", "MODEL.RPN.PRE_NMS_TOPK_TEST", "40"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "30", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.25", "TEST.DETECTIONS_PER_IMAGE", "12"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"),
)
C4 = (
    *("MODEL.KEYPOINT_ON", "False", "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.IN_FEATURES", "['res4']", "MODEL.RPN.IN_FEATURES", "['res4']"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]"),
)
OURS = (
    *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "resnet18"),
    *("MODEL.ROI_MASK_HEAD.NAME", "FCNMaskHead", "MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"),
)
MODELS = {
    "mask and keypoints": (),
    "cascade of ours": (
        *OURS,
        *("MODEL.ROI_HEADS.NAME", "FusedCascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        *("MODEL.ROI_MASK_HEAD.ACTIVATION", "softmax", "MODEL.ROI_KEYPOINT_HEAD.DECODING", "oks"),
        *(
            "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE",
            "1.25",
            "TEST.KEYPOINT_OKS_SIGMAS",
            "[.03, .04, .05, .06, .07]",
        ),
    ),
    "C4": C4,
}
LOW = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1")
SUFFIXES = (".ts", ".pt2", ".onnx")  # test_standalone.py has OpenVINO's
SIZES = ((96, 130), (70, 161), (201, 88))


def make_cfg(*opts):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.MODEL.TIMM.ARGS.channels = [8, 16, 16, 32]
    cfg.merge_from_list([*STOCK, *opts])
    return cfg


def make_model(*opts):
    """A small model whose random weights find something, of scores that differ."""
    torch.manual_seed(0)
    model = build_model(make_cfg(*opts)).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith(("running_var", "norm.weight", "bn1.weight", "bn2.weight")):
            value.uniform_(0.8, 1.2)
        elif key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
            value.mul_(8)
    return model


def make_inputs(size, **output_size):
    generator = torch.Generator().manual_seed(sum(size))
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return [{"image": image, **output_size}]


@torch.no_grad()
def infer(model, inputs):
    return model(inputs)[0]["instances"]


def assert_same(result, expected):
    assert len(expected) > 0 and result.image_size == expected.image_size
    assert result.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(result.pred_classes, expected.pred_classes)
    torch.testing.assert_close(result.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-5)
    if expected.has("pred_masks"):
        assert result.pred_masks.dtype == torch.bool and result.pred_masks.shape == expected.pred_masks.shape
        assert (result.pred_masks != expected.pred_masks).float().mean() < 1e-4
    if expected.has("pred_keypoints"):
        torch.testing.assert_close(
            result.pred_keypoint_heatmaps, expected.pred_keypoint_heatmaps, rtol=0, atol=1e-3
        )
        keypoints, stock = result.pred_keypoints, expected.pred_keypoints
        same = (keypoints - stock)[..., :2].abs().amax(dim=2) < 0.01
        assert same.float().mean() > 0.95  # two peaks may be all but tied
        torch.testing.assert_close(keypoints[same][:, 2], stock[same][:, 2], rtol=1e-3, atol=1e-5)


def assert_nothing(result, expected):
    assert len(result) == len(expected) == 0
    for name, value in expected.get_fields().items():
        if isinstance(value, torch.Tensor):
            assert result.get(name).shape == value.shape and result.get(name).dtype == value.dtype


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", MODELS)
def test_the_models_instances(tmp_path, name, suffix):
    """One file for images of several sizes, output sizes, several images at once, and none found in them."""
    model = make_model(*MODELS[name])
    exported = export_model(model, tmp_path / f"model{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"model{suffix}"] and exported.path.is_file()
    inputs = [*make_inputs(SIZES[0]), *make_inputs(SIZES[1], height=140, width=200), *make_inputs(SIZES[2])]
    images = [item["image"].clone() for item in inputs]
    for item, image, result in zip(inputs, images, exported(inputs), strict=True):
        assert_same(result["instances"], infer(model, [item]))
        assert torch.equal(item["image"], image)
    inputs = [{"image": torch.full((3, 40, 120), torch.nan), "height": 45, "width": 60}]
    assert_nothing(infer(exported, inputs), infer(model, inputs))
    with pytest.raises(ValueError, match=r"image must have shape \(3, H, W\), got \(1, 3, 90, 90\)"):
        exported.detect(torch.zeros(1, 3, 90, 90))
    if suffix == ".onnx":
        import onnx

        file = onnx.load(exported.path)
        onnx.checker.check_model(file)
        assert {node.domain for node in file.graph.node} == {""}  # standard operators only


CROWD = (
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "400", "MODEL.RPN.POST_NMS_TOPK_TEST", "900"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "TEST.DETECTIONS_PER_IMAGE", "200"),
)
HEADS = {
    "SimCC, MLP": (
        "MODEL.ROI_KEYPOINT_HEAD.NAME",
        "SimCCKeypointHead",
        "MODEL.ROI_MASK_HEAD.NAME",
        "MLPMaskHead",
    ),
    "UniPose-LSTM, of single images": (
        *("MODEL.ROI_KEYPOINT_HEAD.NAME", "UniPoseLSTMKeypointHead", "MODEL.ROI_KEYPOINT_HEAD.LSTM_DIM", "8"),
        *("MODEL.ROI_KEYPOINT_HEAD.WASP_RATES", "[1, 2]"),
    ),
    "one for all classes": (
        *("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "True"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True", "MODEL.ROI_KEYPOINT_HEAD.DECODING", "dark"),
    ),
    "thousands of candidates": CROWD,
    # Their distances on P6, which is rounded up, are no strides.
    "anchors of torchvision": (
        *("MODEL.KEYPOINT_ON", "False", "MODEL.ANCHOR_GENERATOR.NAME", "TorchvisionAnchorGenerator"),
        *("MODEL.RPN.PRE_NMS_TOPK_TEST", "400"),
    ),
    "keypoints of a C4 model": (
        *C4,
        "MODEL.ROI_HEADS.NAME",
        "FusedRes5ROIHeads",
        "MODEL.KEYPOINT_ON",
        "True",
    ),
}


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
@pytest.mark.parametrize("name", HEADS)
def test_heads(tmp_path, name, suffix):
    model = make_model(*HEADS[name], *LOW)
    exported = export_model(model, tmp_path / f"model{suffix}")
    for size in SIZES[:2]:
        assert_same(infer(exported, make_inputs(size)), infer(model, make_inputs(size)))


def test_mask_scores(tmp_path):
    model = make_model("MODEL.ROI_MASK_HEAD.NAME", "MaskScoringHead", *LOW)
    with pytest.raises(NotImplementedError, match="MaskScoringHead has no export: its adaptive pooling"):
        export_model(model, tmp_path / "model.onnx")
    exported = export_model(model, tmp_path / "model.ts")
    result, expected = infer(exported, make_inputs(SIZES[0])), infer(model, make_inputs(SIZES[0]))
    assert_same(result, expected)
    torch.testing.assert_close(result.mask_scores, expected.mask_scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_a_model_that_finds_nothing_while_it_is_exported(tmp_path, suffix):
    model = make_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.36")
    exported = export_model(model, tmp_path / f"model{suffix}")
    counts = []
    for size in SIZES:
        inputs = make_inputs(size)
        result, expected = infer(exported, inputs), infer(model, inputs)
        counts.append(len(expected))
        assert len(result) == len(expected)
    assert min(counts) == 0 < max(counts)


def test_torchscript_runs_without_detectron2(tmp_path):
    model = make_model(*MODELS["cascade of ours"])
    export_model(model, tmp_path / "model.ts")
    inputs = make_inputs(SIZES[0])
    np.save(tmp_path / "image.npy", inputs[0]["image"].numpy())
    program = """
import sys
import zipfile
sys.modules["detectron2"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "detectron2" else find(name, package)
import numpy, torch
from mrcnn_ext.export import ExportedModel
image = torch.from_numpy(numpy.load("image.npy"))
torch.save(ExportedModel("model.ts").detect(image), "found.pt")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "found.pt")
    with torch.no_grad():
        (expected,) = model.inference(inputs, do_postprocess=False)
    assert len(expected) > 0 and found.keys() == {
        "boxes",
        "scores",
        "classes",
        "masks",
        "keypoints",
        "keypoint_scores",
        "heatmaps",
    }
    torch.testing.assert_close(found["boxes"], expected.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(found["masks"], expected.pred_masks, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["keypoints"], expected.pred_keypoints, rtol=0, atol=1e-2)


def test_an_accelerated_model_is_exported_as_it_was(tmp_path):
    model = make_model()
    fast = accelerate(model, bf16=True)
    exported = export_model(fast, tmp_path / "model.ts")
    assert_same(infer(exported, make_inputs(SIZES[1])), infer(model, make_inputs(SIZES[1])))
    assert fast.acceleration.bf16


@pytest.mark.parametrize("pooler_type", ["ROIPool", "PrROIPool"])
def test_other_poolers_go_to_torchscript_and_not_to_onnx(tmp_path, pooler_type):
    options = ("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", pooler_type)
    model = make_model(*options)
    with pytest.raises(
        NotImplementedError, match=f"roi_heads.mask_pooler pools by {pooler_type}, which ONNX"
    ):
        export_model(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    exported = export_model(model, tmp_path / "model.ts")
    assert_same(infer(exported, make_inputs(SIZES[1])), infer(model, make_inputs(SIZES[1])))


def change_class(name):
    def change(model):
        part = model.get_submodule(name) if name else model
        part.__class__ = type("Own", (type(part),), {"forward": lambda self, *args: None})

    return change


def take_away(name):
    return lambda model: setattr(model, name, None)


RETINANET = ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone", "MODEL.MASK_ON", "False")
DEFORMABLE = (
    *("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[False, False, False, True]", "MODEL.RESNETS.DEPTH", "50"),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.WIDTH_PER_GROUP", "4"),
)


@pytest.mark.parametrize(
    "opts, change, message",
    [
        (("MODEL.META_ARCHITECTURE", "RetinaNet", *RETINANET), None, "RetinaNet has no export: only"),
        (("MODEL.META_ARCHITECTURE", "PanopticFPN"), None, "PanopticFPN has no export"),
        ((), change_class(""), "Own has no export: only detectron2's GeneralizedRCNN"),
        ((), change_class("proposal_generator"), "Own has no export: only detectron2's RPN has"),
        ((), change_class("proposal_generator.anchor_generator"), "Own has .* DefaultAnchorGenerator"),
        ((), change_class("roi_heads"), "Own has no export: there is one for FusedROIHeads, "),
        ((), change_class("roi_heads.mask_head"), "Own has no export: it makes masks in a way of its own"),
        ((), change_class("roi_heads.keypoint_head"), "Own has no export: it makes keypoints in a way"),
        ((), take_away("proposal_generator"), "without proposal generator has no export"),
        (DEFORMABLE, None, "DeformConv has no export: it is no operator"),
    ],
)
def test_refusals(tmp_path, opts, change, message):
    model = make_model(*opts)
    if change is not None:
        change(model)
    for suffix in SUFFIXES:
        with pytest.raises(NotImplementedError, match=message):
            export_model(model, tmp_path / f"model{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_file_of_other_answers_is_not_written(tmp_path):
    class KeepsSize(type(make_model().backbone)):
        def forward(self, x):
            return super().forward(
                torch.nn.functional.interpolate(x, self.sizes.setdefault("first", x.shape[2:]))
            )

    model = make_model()
    model.backbone.__class__, model.backbone.sizes = KeepsSize, {}
    with pytest.raises(RuntimeError, match="model.ts was not written: .* images of any size"):
        export_model(model, tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())


def test_it_says_when_nothing_was_compared_and_takes_an_image(tmp_path, caplog):
    model = make_model("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.36")
    export_model(model, tmp_path / "model.ts")
    assert "model.ts gives nothing where the model finds nothing" in caplog.text
    caplog.clear()
    found = next(i for i in map(make_inputs, SIZES) if len(infer(model, i)))
    export_model(model, tmp_path / "model.ts", found[0]["image"])
    assert not caplog.text
    with pytest.raises(ValueError, match=r"image must have shape \(3, H, W\), got \(1, 3, 8, 8\)"):
        export_model(model, tmp_path / "model.ts", torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda i: i.pred_boxes.tensor.add_(1), "its boxes differ from the model's by up to 1 pixels"),
        (lambda i: i.pred_classes.add_(1), r"\d+ of the model's \d+ detections are not among its"),
        (lambda i: i.scores.mul_(0.9), r"\d+ of the model's \d+ detections are not among its"),
        (lambda i: i.pred_masks.add_(torch.nan), "its pred_masks differ from the model's by up to nan"),
        (lambda i: i.pred_keypoint_heatmaps.neg_(), "its pred_keypoint_heatmaps differ"),
    ],
)
def test_every_output_is_compared(tmp_path, monkeypatch, change, message):
    def instances(self, image, stock=ExportedModel.instances):
        found = stock(self, image)
        change(found)
        return found

    monkeypatch.setattr(ExportedModel, "instances", instances)
    image = make_inputs(SIZES[0])[0]["image"]
    with torch.no_grad(), pytest.raises(RuntimeError, match=f"model.ts was not written: {message}"):
        export_model(make_model(), tmp_path / "model.ts", image)
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_for_other_sizes_is_not_written(tmp_path):
    class FixedSize(type(make_model().backbone)):
        def forward(self, x):
            height, width = (int(side) for side in x.shape[2:])
            return super().forward(x.flatten(2).unflatten(2, (height, width)))

    model = make_model()
    model.backbone.__class__ = FixedSize
    with pytest.raises(RuntimeError, match="model.ts was not written: it fails for an image of another size"):
        export_model(model, tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())


def test_wrong_paths(tmp_path, monkeypatch):
    model = make_model()
    with pytest.raises(
        ValueError, match=r"path must end with one of .ts, .pt2, .onnx, .xml, got .*model.pth"
    ):
        export_model(model, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="there is no folder .*nowhere"):
        export_model(model, tmp_path / "nowhere" / "model.ts")
    with pytest.raises(FileNotFoundError, match="there is no exported model .*model.ts"):
        ExportedModel(tmp_path / "model.ts")
    with pytest.raises(ValueError, match="the suffix must be one of .ts, .pt2, .onnx, .xml"):
        ExportedModel(tmp_path / "model.pth")
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "other.ts")
    with pytest.raises(ValueError, match="other.ts lacks mrcnn_ext.json: it was not written by"):
        ExportedModel(tmp_path / "other.ts")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        ImportError, match="onnxruntime is needed to check .onnx files: pip install onnxruntime"
    ):
        export_model(model, tmp_path / "model.onnx")


def test_command(tmp_path):
    model, cfg = make_model(), make_cfg()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    image = make_inputs(SIZES[0])[0]["image"].permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "image.png")

    def call(*arguments):
        options = {
            "config-file": "config.yaml",
            "output": "m.ts",
            "weights": "weights.pth",
            "image": "image.png",
        }
        given = [word for key, name in options.items() for word in (f"--{key}", str(tmp_path / name))]
        return CliRunner().invoke(cli_export.command, [*given, *arguments])

    found = call()
    assert "m.ts: gives boxes, scores, classes, masks, heatmaps" in found.output, found.output
    exported = ExportedModel(tmp_path / "m.ts")
    assert exported.metadata["test_size"] == {"min": 800, "max": 1333}
    inputs = make_inputs(SIZES[1])
    assert_same(infer(exported, inputs), infer(model, inputs))
    found = call("MODEL.META_ARCHITECTURE", "PanopticFPN")
    assert found.exit_code == 1 and "weights.pth lacks 23 of the model's 111 parameters" in str(
        found.exception
    )
    assert "m.ts needs PyTorch; it is for .onnx and .xml files" in str(call("--with-runtime").exception)
    (tmp_path / "image.png").write_text("no image")
    assert re.search("image.png: the image cannot be read: ", str(call().exception))


def planted_archive(path, change, target=None):
    """A copy of an archive with members changed: ``change(name, content)`` gives the new content, None to leave out."""
    copy = target or path.with_name(f"planted{path.suffix}")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as out:
        for info in archive.infolist():
            content = change(info.filename, archive.read(info))
            if content is not None:
                out.writestr(info.filename, content)
    return copy


class Payload:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def pickled_weight(name, content, payload):
    if name.endswith("model_weights_config.json"):
        config = json.loads(content)
        next(value for value in config["config"].values() if value["path_name"] == "weight_0")[
            "use_pickle"
        ] = True
        return json.dumps(config).encode()
    return torch_bytes(payload) if name.endswith("weights/weight_0") else content


def torch_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def replaced_in_graph(old, new):
    def change(name, content, payload):
        if not name.endswith("models/model.json"):
            return content
        assert old in content
        return content.replace(old, new.replace(b"FILE", payload.file.encode()), 1)

    return change


PLANTS = {
    "weight": (pickled_weight, "a pickled object in its member .*model_weights_config.json"),
    "sample inputs": (
        lambda name, content, payload: torch_bytes(payload) if "sample_inputs" in name else content,
        "pickled objects in its member .*sample_inputs",
    ),
    "formula": (
        replaced_in_graph(
            b'"expr_str": "Symbol(\'s', b"\"expr_str\": \"__import__('os').mkdir('FILE') or Symbol('s"
        ),
        "the expression .*__import__",
    ),
    "operator": (
        replaced_in_graph(b'"torch.ops.aten.softmax.int"', b'"torch.hub.load"'),
        "a call of torch.hub.load",
    ),
    "library": (
        lambda name, content, payload: content,
        "its member .*aotinductor/model/lib.so",
    ),
}


@pytest.fixture(scope="module")
def pt2_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    export_model(make_model(), path)
    return path


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_archive_is_not_opened(pt2_file, tmp_path, plant):
    change, message = PLANTS[plant]
    payload = Payload(tmp_path / "PLANTED")
    path = planted_archive(pt2_file, lambda name, content: change(name, content, payload), tmp_path / "x.pt2")
    if plant == "library":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model/data/aotinductor/model/lib.so", b"ELF")
    with pytest.raises(ValueError, match=rf"x.pt2 holds code \({message}.*trust=True"):
        ExportedModel(path)
    assert not os.path.exists(payload.file)
    if plant in ("weight", "sample inputs"):  # the danger is real
        with contextlib.suppress(Exception):
            ExportedModel(path, trust=True)
        assert os.path.exists(payload.file)


@pytest.mark.parametrize("suffix", [".pt2", ".ts"])
def test_a_damaged_file_is_not_opened(pt2_file, tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    content = bytearray(pt2_file.read_bytes())  # an archive whatever it is called
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its checksum"):
        ExportedModel(path)


def detections(scores, boxes, classes, masks=None):
    result = Instances((100, 100))
    result.scores, result.pred_classes = torch.tensor(scores), torch.tensor(classes)
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    result.pred_masks = torch.arange(len(scores)).float()[:, None, None, None] if masks is None else masks
    return result


FAR = [[0, 0, 10, 10], [85, 85, 95, 95], [30, 30, 40, 40]]


def test_detections_of_tied_scores_may_swap():
    expected = detections([0.9, 0.5, 0.4999999], FAR, [0, 1, 1])
    order = [0, 2, 1]
    assert _difference(expected[torch.tensor(order)], expected) == ""
    swapped = expected[torch.tensor(order)]
    swapped.pred_masks = expected.pred_masks * 1.0  # which did not swap with their boxes
    assert "its pred_masks differ" in _difference(swapped, expected)


def test_detections_of_other_scores_may_not_swap():
    expected = detections([0.9, 0.6, 0.5], FAR, [0, 1, 1])
    found = detections([0.9, 0.6, 0.5], [FAR[0], FAR[2], FAR[1]], [0, 1, 1])
    assert "its boxes differ from the model's by up to 55 pixels" in _difference(found, expected)
    found = detections([0.9, 0.6, 0.5], FAR, [0, 2, 1])
    assert _difference(found, expected) == (
        "1 of the model's 3 detections are not among its (the first: class 1, score 0.6000, box 85.0, 85.0, 95.0, 95.0)"
    )


def test_a_tie_at_the_end_of_the_list():
    expected = detections([0.9, 0.6, 0.5], FAR, [0, 1, 1])
    assert _difference(detections([0.9, 0.6, 0.5], FAR, [0, 1, 2]), expected) == ""


def test_a_file_of_other_answers_is_written_where_asked_for(tmp_path, monkeypatch, caplog):
    def instances(self, image, stock=ExportedModel.instances):
        found = stock(self, image)
        found.pred_boxes.tensor[:, 0] += 3
        return found

    monkeypatch.setattr(ExportedModel, "instances", instances)
    image = make_inputs(SIZES[0])[0]["image"]
    with torch.no_grad():
        export_model(make_model(), tmp_path / "model.ts", image, write_anyway=True)
    assert (tmp_path / "model.ts").exists()
    assert "model.ts is written although its boxes differ from the model's by up to 3 pixels" in caplog.text


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(tmp_path, channels, suffix):
    mean, std = [110.0] * channels, [57.0] * channels
    model = make_model("MODEL.PIXEL_MEAN", str(mean), "MODEL.PIXEL_STD", str(std), *LOW)
    exported = export_model(model, tmp_path / f"model{suffix}")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (channels, *SIZES[0]), generator=generator, dtype=torch.uint8)
    assert_same(exported([{"image": image}])[0]["instances"], infer(model, [{"image": image}]))
    with pytest.raises(ValueError, match=rf"image must have shape \({channels}, H, W\), got \(3, 8, 8\)"):
        exported.detect(torch.zeros(3, 8, 8))
