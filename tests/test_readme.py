"""What README.md prints works as it stands: snippets of Python and yaml run, command lines parse, lines work alone."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import click
import cv2
import numpy as np
import torch
import yaml
from detectron2.config import get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

import mrcnn_ext_command
from mrcnn_ext import add_mrcnn_ext_config, model_zoo
from mrcnn_ext.accel.cpu_features import int8_kernels_are_available
from mrcnn_ext.data.data_file import read_data_file
from mrcnn_ext.engine import load_config
from mrcnn_ext.engine.launch import argument_parser

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[1]
# Small and on the CPU, whatever a config is of.
SMALL = {
    "MODEL": {
        "DEVICE": "cpu",
        "WEIGHTS": "",
        "PIXEL_STD": [57.375, 57.12, 58.395],
        "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "STRIDE_IN_1X1": False},
        "FPN": {"OUT_CHANNELS": 16},
        "RPN": {"POST_NMS_TOPK_TRAIN": 20, "POST_NMS_TOPK_TEST": 10},
        "ROI_HEADS": {"BATCH_SIZE_PER_IMAGE": 8},
        "ROI_BOX_HEAD": {"FC_DIM": 16},
        "ROI_MASK_HEAD": {"CONV_DIM": 16, "FC_DIM": 16},
        "ROI_KEYPOINT_HEAD": {"CONV_DIMS": [16, 16]},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"MAX_ITER": 1, "IMS_PER_BATCH": 1},
    "TEST": {"DETECTIONS_PER_IMAGE": 3},
}


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def skiers(tmp_path, monkeypatch):
    """The data that README.md speaks of, in the working directory: two classes, boxes and masks."""
    monkeypatch.chdir(tmp_path)
    before = set(DatasetCatalog.list())
    box = {"bbox": [4, 4, 40, 50], "area": 2000, "iscrowd": 0, "segmentation": [[4, 4, 44, 4, 44, 54, 4, 54]]}
    content = {
        "images": [{"id": 1, "file_name": "1.png", "height": 64, "width": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "skier"}, {"id": 2, "name": "sledge"}],
    }
    pairs = [("annotations/train", "images/train"), ("annotations/val", "images/val")]
    for annotations, images in [*pairs, ("skiers/annotations", "skiers/images")]:
        Path(images).mkdir(parents=True)
        Path(annotations).parent.mkdir(exist_ok=True)
        Path(f"{annotations}.json").write_text(json.dumps(content))
        cv2.imwrite(f"{images}/1.png", np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8))
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


class Gate(nn.Module):
    """The user's own module, of the snippet on fusing."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x):
        return self.conv(x) * self.gate(x).sigmoid()


def test_python_runs_in_one_session(skiers, tmp_path, monkeypatch):
    get_config_file = model_zoo.get_config_file

    def small_config_file(name):
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({"_BASE_": get_config_file(name), **SMALL}))
        return str(path)

    monkeypatch.setattr(model_zoo, "get_config_file", small_config_file)
    session = {"image": np.zeros((60, 90, 3), np.uint8), "Gate": Gate}
    for snippet in blocks("python"):
        if "int8=inputs" in snippet:  # "On processors with AVX2"
            if not int8_kernels_are_available():
                continue
            session["inputs"] = [[{"image": torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)}]]
        if "accelerate(model)" in snippet:  # "any GeneralizedRCNN of either"
            session["model"] = small_lazy_model(session["model"])
        if "mrcnn_runtime" in snippet:
            export_beside_runtime(monkeypatch)
        if "roi_align(" in snippet:
            session |= {"features": torch.rand(1, 4, 20, 30), "boxes": torch.tensor([[0, 8.0, 8, 90, 70]])}
            session |= {f"p{k}": torch.rand(1, 4, 256 >> k, 320 >> k) for k in range(2, 6)}
        exec(compile(snippet, "README.md", "exec"), session)
    assert session["instances"].image_size == (60, 90)
    assert session["model"].acceleration is not None
    assert session["pooled"].shape == (1, 4, 7, 7)
    from mrcnn_ext.accel import FusedModule

    assert issubclass(session["FusedGate"], FusedModule)


def export_beside_runtime(monkeypatch):
    """What ``mrcnn-ext export --with-runtime`` leaves in the working directory: model.onnx and the runtime's module."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from mrcnn_ext.export import export_model, standalone

    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(model_zoo.detectron2_zoo.get_config_file(STOCK))
    cfg.merge_from_other_cfg(type(cfg)(SMALL))
    cfg.MODEL.KEYPOINT_ON = True
    export_model(build_model(cfg).eval(), "model.onnx")
    monkeypatch.setitem(sys.modules, "mrcnn_runtime", standalone)


def small_lazy_model(model):
    """The model of the LazyConfig snippet, without what a network would have to fetch."""
    assert model.input_format == "RGB" and model.pixel_mean == [123.675, 116.28, 103.53]
    model.backbone.bottom_up.pretrained = False
    model.backbone.bottom_up.model_args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}
    return instantiate(model).eval()


def test_yaml_is_a_config_or_a_data_file(skiers):
    kinds = []
    for number, snippet in enumerate(blocks("yaml")):
        path = Path(f"{number}.yaml")
        path.write_text(snippet)
        if "train" in yaml.safe_load(snippet):
            data = read_data_file(path)
            kinds.append("data")
            assert len(data.train) == len(data.test) == 1
            continue
        cfg = load_config(str(path))
        kinds.append("config")
        if "timm" not in cfg.MODEL.BACKBONE.NAME:
            continue
        # Not R-50's weights and input.
        assert (cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.PRETRAINED, cfg.INPUT.FORMAT) == ("", True, "RGB")
        assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
        cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.DEVICE = False, "cpu"  # there may be no network
        cfg.TEST.DETECTIONS_PER_IMAGE = 3
        forward(build_model(cfg))
    assert {"data", "config"} <= set(kinds)


def forward(model):
    with torch.no_grad():
        (result,) = model.eval()(
            [{"image": torch.zeros(3, 64, 96, dtype=torch.uint8), "height": 64, "width": 96}]
        )
    return result["instances"]


def commands():
    lines = []
    for block in blocks("sh"):
        lines += block.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("line", commands())
def test_command_lines_parse(line):
    program, *words = shlex.split(line, comments=True)
    if program in ("python", "torchrun"):
        script = words.pop(0)
        if script == "-m":
            module = words.pop(0).replace(".", "/")
            assert any((ROOT / f"{module}{end}").exists() for end in (".py", "/__main__.py")), line
        else:
            assert (ROOT / script).is_file(), line
            if "train_net" in script:
                argument_parser().parse_args(words)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif program == "mrcnn-ext":
        parse(mrcnn_ext_command.command, words)
    else:
        assert program in ("pip", "eval", "git", "cd", "cp", "tar", "docker", "conda"), line


def parse(command, words):
    """Parses a command line down to its subcommand; click's own errors come through."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        if words[0] in mrcnn_ext_command.COMMANDS and not (ROOT / f"mrcnn_ext/cli/{words[0]}.py").is_file():
            pytest.skip(f"mrcnn-ext {words[0]} is not there")
        name, subcommand, rest = command.resolve_command(context, words)
        return parse(subcommand, rest)
    with command.make_context("mrcnn-ext", list(words)):
        pass


def commands_of_sentences():
    pages = [ROOT / "README.md", ROOT / "datasets" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE) for page in pages]
    return [span.split() for text in texts for span in re.findall(r"`mrcnn-ext ([^`]+)`", text)]


def commands_of_help(command):
    text = (command.help or "").replace("\\\n", " ")
    found = [shlex.split(line) for line in re.findall(r"^ *mrcnn-ext (.*)$", text, re.MULTILINE)]
    if isinstance(command, click.Group):
        context = click.Context(command)
        found += [
            line
            for name in command.list_commands(context)
            for line in commands_of_help(command.get_command(context, name))
        ]
    return found


def check_names(words):
    """That there are such a subcommand and its options."""
    command = mrcnn_ext_command.command
    while isinstance(command, click.Group) and words and words[0] != "..." and words[0][0] != "-":
        _, command, words = command.resolve_command(click.Context(command), words)
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in words:
        assert not word.startswith("--") or word.split("=")[0] in options, (word, command.name)


def test_commands_within_sentences_and_help_are_there():
    lines = [commands_of_sentences(), commands_of_help(mrcnn_ext_command.command)]
    assert all(len(found) > 20 for found in lines)
    for words in [*lines[0], *lines[1]]:
        check_names(words)


STOCK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
SMALL_SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


@pytest.mark.parametrize(
    "lines, message",
    [
        ({"BACKBONE.NAME": "build_timm_fpn_backbone", "TIMM.NAME": "resnet18"}, None),
        ({"BACKBONE.NAME": "build_timm_fpn_backbone", "TIMM.NAME": "swin_tiny_patch4_window7_224"}, None),
        ({"TIMM.NAME": "resnet18"}, None),
        ({"ROI_HEADS.NAME": "FusedROIHeads"}, None),
        ({"ROI_HEADS.NAME": "FusedCascadeROIHeads"}, "set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"),
        ({"ROI_HEADS.NAME": "FusedCascadeROIHeads", "ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True}, None),
        ({"ROI_HEADS.NAME": "FusedRes5ROIHeads"}, "with an FPN set MODEL.ROI_HEADS.NAME FusedROIHeads"),
        ({"ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign"}, None),
        ({"ROI_BOX_HEAD.POOLER_TYPE": "PrROIPool"}, "set MODEL.ROI_HEADS.NAME FusedROIHeads"),
        ({"ROI_HEADS.NAME": "FusedROIHeads", "ROI_BOX_HEAD.POOLER_TYPE": "PrROIPool"}, None),
        ({"ROI_MASK_HEAD.NAME": "FCNMaskHead"}, None),
        ({"ROI_MASK_HEAD.NAME": "BoundaryMaskHead"}, None),
        ({"ROI_MASK_HEAD.NAME": "MaskScoringHead"}, None),
        ({"ROI_MASK_HEAD.NAME": "MLPMaskHead"}, None),
        ({"ROI_KEYPOINT_HEAD.NAME": "HeatmapKeypointHead"}, None),
        ({"ROI_KEYPOINT_HEAD.NAME": "SimCCKeypointHead"}, None),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_every_line_works_alone_or_says_what_to_add(lines, message):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(model_zoo.detectron2_zoo.get_config_file(STOCK))
    cfg.merge_from_other_cfg(type(cfg)(SMALL))
    cfg.MODEL.KEYPOINT_ON = any("KEYPOINT" in key for key in lines)
    if "swin" in str(lines):
        cfg.MODEL.TIMM.ARGS.update(SMALL_SWIN)
    for key, value in lines.items():
        cfg.merge_from_list([f"MODEL.{key}", value])
    if message is not None:
        with pytest.raises(ValueError, match=message):
            build_model(cfg)
        return
    assert forward(build_model(cfg)).has("pred_masks")
