"""What a wrong config, command line or dataset is answered with: one line that names it."""

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from detectron2.config import LazyCall, LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.utils.file_io import PathManager
from omegaconf import OmegaConf
from PIL import Image

from mrcnn_ext.data import load_dataset
from mrcnn_ext.data.loading import not_on_disk
from mrcnn_ext.engine import (
    Trainer,
    UserError,
    argument_parser,
    check_config,
    check_lazy_config,
    launch,
    load_config,
)
from mrcnn_ext.engine.checks import names_for_losses
from mrcnn_ext.engine.launch import run_tool
from mrcnn_ext.engine.lazy import load_lazy_config
from mrcnn_ext.engine.setup import save_config
from mrcnn_ext.engine.trainer import build_validation_loader
from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.files import DiskFullError
from mrcnn_ext.inference.sources import open_source

pytestmark = pytest.mark.detectron2


def message(function, *args, **kwargs):
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def yaml(tmp_path):
    """Writes a yaml config and returns its path."""

    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_file_and_command_line_are_merged(yaml):
    cfg = load_config(yaml("VERSION: 2\nSOLVER: {MAX_ITER: 7, BASE_LR: 0.5}\n"), ["SOLVER.MAX_ITER", "8"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.VAL_LOSS.ENABLED) == (8, 0.5, True)


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "MODEL: {MASKON: True}",
            "config.yaml: unknown config key MODEL.MASKON; did you mean MODEL.MASK_ON?",
        ),
        ("SOLVR: {MAX_ITER: 3}", "config.yaml: unknown config key SOLVR; did you mean SOLVER?"),
        ("SOLVER: {MAX_ITER: many}", "config.yaml: SOLVER.MAX_ITER must be of type int, got many"),
        ("SOLVER: 3", "config.yaml: SOLVER must be a section of keys, got 3"),
        ("- MODEL", "config.yaml, line 2: expected <block end>, but found '-'"),
        ("MODEL: {MASK_ON: [1", "config.yaml, line 3: expected ',' or ']', but got '<stream end>'"),
        ("_BASE_: none.yaml", "/none.yaml does not exist"),
    ],
)
def test_wrong_yaml(yaml, text, expected):
    assert expected in message(load_config, yaml("VERSION: 2\n" + text + "\n"))


@pytest.mark.parametrize(
    "opts, expected",
    [
        (
            ["SOLVER.BASELR", "1"],
            "command line: unknown config key SOLVER.BASELR; did you mean SOLVER.BASE_LR?",
        ),
        (["MAX_ITER", "1"], "command line: unknown config key MAX_ITER; did you mean SOLVER.MAX_ITER?"),
        (["SOLVER.MAX_ITER", "x"], "command line: SOLVER.MAX_ITER must be of type int, got x"),
        (["SOLVER.MAX_ITER"], "config options must be pairs, KEY VALUE KEY VALUE ...; got: SOLVER.MAX_ITER"),
    ],
)
def test_wrong_options(opts, expected):
    assert message(load_config, "", opts) == expected


def test_missing_config_file():
    assert message(load_config, "nowhere/config.yaml") == "config file not found: nowhere/config.yaml"


def test_config_of_the_other_kind(tmp_path, yaml):
    lazy = tmp_path / "config.py"
    lazy.write_text("train = dict(max_iter=1)")
    assert "config.py is a LazyConfig: use tools/lazyconfig_train_net.py" in message(load_config, str(lazy))
    assert "is not a LazyConfig (.py): use tools/train_net.py for yaml" in message(load_lazy_config, yaml(""))


@pytest.mark.parametrize(
    "key, registry",
    [
        ("MODEL.META_ARCHITECTURE", "META_ARCH"),
        ("MODEL.BACKBONE.NAME", "BACKBONE"),
        ("MODEL.ROI_HEADS.NAME", "ROI_HEADS"),
        ("MODEL.ROI_MASK_HEAD.NAME", "ROI_MASK_HEAD"),
    ],
)
def test_unknown_registry_name(key, registry):
    cfg = load_config(
        "", ["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "True", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
    )
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
    right = cfg
    for part in key.split("."):
        right = right[part]
    right = right or "MaskRCNNConvUpsampleHead"
    cfg.merge_from_list([key, right[:-1]])
    found = message(Trainer.build_model, cfg)
    start = f"{key}: '{right[:-1]}' is not in detectron2's {registry} registry; did you mean "
    assert found.startswith(start) and right in found.removeprefix(start)


# --- LazyConfig


@pytest.fixture
def saved_lazy_config(tmp_path):
    """The path of a saved LazyConfig, which `LazyConfig.load` reads."""
    save_config(OmegaConf.create({"train": {"seed": 1}}), str(tmp_path))
    path = tmp_path / "config.yaml"
    assert LazyConfig.load(str(path)).train.seed == 1
    return path


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")], ids=repr)
def test_a_saved_lazy_config_is_whole_or_as_it_was(saved_lazy_config, monkeypatch, error):
    def interrupted(name, mode):
        Path(name).write_text("train: {se")
        raise error

    before = saved_lazy_config.read_text()
    monkeypatch.setattr(PathManager, "open", interrupted)
    with pytest.raises(DiskFullError if isinstance(error, OSError) else KeyboardInterrupt):
        save_config(OmegaConf.create({"train": {"seed": 2}}), str(saved_lazy_config.parent))
    assert saved_lazy_config.read_text() == before
    assert os.listdir(saved_lazy_config.parent) == ["config.yaml"]


def test_a_lazy_config_that_yaml_does_not_take_is_pickled_beside_it(saved_lazy_config, caplog):
    cfg = OmegaConf.create({"train": {"rate": lambda: 1}}, flags={"allow_objects": True})
    save_config(cfg, str(saved_lazy_config.parent))
    assert sorted(os.listdir(saved_lazy_config.parent)) == ["config.yaml", "config.yaml.pkl"]
    assert f"saved using cloudpickle at {saved_lazy_config}.pkl" in caplog.text


@pytest.fixture
def lazy_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from detectron2.config import LazyCall as L\n"
        "model, dataloader, lr_multiplier = {}, {}, {}\n"
        "from torch.optim import SGD\n"
        "optimizer = L(SGD)(lr=0.1)\n"
        "train = dict(max_iter=3, amp=dict(enabled=False))\n"
    )
    return str(path)


def test_lazy_overrides(lazy_file):
    overrides = ["train.max_iter=5", "optimizer.momentum=0.9", "+train.amp.new=1"]
    cfg = load_lazy_config(lazy_file, overrides)
    assert (cfg.train.max_iter, cfg.optimizer.momentum, cfg.train.amp.new) == (5, 0.9, 1)


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.max_itr=5", "command line: unknown config key train.max_itr; did you mean train.max_iter?"),
        ("trian.max_iter=5", "command line: unknown config key trian.max_iter; did you mean train.max_iter?"),
        ("SOLVER.MAX_ITER", "command line: 'SOLVER.MAX_ITER' is not of the form key=value"),
        ("train.new=1", "command line: unknown config key train.new (+key=value adds one)"),
        ("train.max_iter=[1", "command line: "),
        (
            "train.max_iter.x=1",
            "command line: Trying to update key train.max_iter.x, but train.max_iter is not a config",
        ),
    ],
)
def test_wrong_lazy_overrides(lazy_file, override, expected):
    assert message(load_lazy_config, lazy_file, [override]).startswith(expected)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("model = {", "syntax error"),
        ("from nowhere import x", "No module named 'nowhere'"),
        ("train = dict(max_iter=3)", "lacks model, dataloader, optimizer, lr_multiplier; needed: model,"),
    ],
)
def test_wrong_lazy_files(tmp_path, text, expected):
    path = tmp_path / "config.py"
    path.write_text(text)
    found = message(load_lazy_config, str(path))
    assert found.startswith(str(path)) and expected in found


def test_missing_lazy_file():
    assert message(load_lazy_config, "nowhere.py") == "config file not found: nowhere.py"
    assert message(load_lazy_config, "") == "config file not found: (none given: use --config-file)"


# --- Launching


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--num-gpus", "100"], "--num-gpus 100, but torch finds"),
        (
            ["--num-gpus", "0", "--num-machines", "2"],
            "several machines need the same --dist-url, tcp://HOST:PORT",
        ),
        (["--num-gpus", "0", "--num-processes", "0"], "--num-processes must be at least 1, got 0"),
        (["--num-gpus", "0", "--num-machines", "0"], "--num-machines must be at least 1, got 0"),
    ],
)
def test_wrong_flags(flags, expected):
    assert message(launch, print, argument_parser().parse_args(flags)).startswith(expected)


def test_a_launcher_that_says_half(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    found = message(launch, print, argument_parser().parse_args(["--num-gpus", "0"]))
    assert found.startswith("RANK and WORLD_SIZE are set, LOCAL_RANK and LOCAL_WORLD_SIZE not: the launcher")


def _die(args):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_was_killed_is_told(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["tool", "--num-gpus", "0", "--num-processes", "2"])
    with pytest.raises(SystemExit, match=r"error: process [01] was ended by SIGKILL: out of memory\?"):
        run_tool(_die, argument_parser())


def test_one_process_runs_here(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    args = argument_parser().parse_args([])
    assert launch(lambda args: args.num_gpus, args) == min(1, torch.cuda.device_count())


# --- Datasets


@pytest.fixture
def dataset(tmp_path):
    """Registers a COCO dataset of one image after ``edit(content)``; returns its name."""
    names = []

    def make(edit=lambda content: None, **metadata):
        content = {
            "images": [dict(id=1, file_name="1.png", height=20, width=30)],
            "categories": [dict(id=1, name="person"), dict(id=2, name="car")],
            "annotations": [
                dict(
                    id=5,
                    image_id=1,
                    category_id=1,
                    bbox=[2, 2, 10, 10],
                    area=100,
                    iscrowd=0,
                    segmentation=[[2, 2, 12, 2, 12, 12, 2, 12]],
                    keypoints=[3, 3, 2] * 17,
                    num_keypoints=17,
                )
            ],
        }
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "1.png")
        edit(content)
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        names.append(f"setup_test_{len(names)}")
        register_coco_instances(names[-1], metadata, str(tmp_path / "annotations.json"), str(tmp_path))
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


KEYPOINTS = dict(keypoint_names=COCO_PERSON_KEYPOINT_NAMES, keypoint_flip_map=[])
FOUR_KEYPOINTS = dict(keypoint_names=["head", "thorax", "abdomen", "tail"], keypoint_flip_map=[])


def config(train, test=(), **options):
    cfg = load_config("")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), tuple(test)
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = options.pop("num_classes", 2)
    for key, value in options.items():
        cfg.MODEL.ROI_KEYPOINT_HEAD[key] = value
    return cfg


def test_good_dataset_passes(dataset):
    name = dataset(**KEYPOINTS)
    check_config(config(name, [name]))


def test_int8_of_a_training_is_calibrated_with_a_dataset(dataset, tmp_path):
    """Not only at its first evaluation, which may be hours later."""
    name, file = dataset(**KEYPOINTS), tmp_path / "int8.json"
    file.write_text("{}")
    cfg, lazy = config(name, [name]), lazy_config(name)
    lazy.dataloader.evaluator = LazyCall(COCOEvaluator)(dataset_name=name)
    cfg.MODEL.ACCELERATE = lazy.train.accelerate = True
    for value, told in (
        (name, None),
        (str(file), "int8.json is for the weights that it was made with, and a training makes others"),
        ("nothing", "'nothing' is neither the file of a calibration nor a registered dataset"),
    ):
        cfg.MODEL.ACCELERATE_INT8 = lazy.train.accelerate_int8 = value
        for check, given in ((check_config, cfg), (check_lazy_config, lazy)):
            if told is None:
                check(given)
            else:
                assert told in message(check, given)
    cfg.MODEL.ACCELERATE_INT8 = str(file)
    check_config(cfg, eval_only=True)
    cfg.MODEL.ACCELERATE = False
    check_config(cfg)


def change(**values):
    return lambda content: content["annotations"][0].update(values)


def cut_image(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    "edit, options, expected",
    [
        (
            None,
            dict(num_classes=1),
            r"setup_test_0.* has 2 classes \(person, car\), the model 1: set MODEL.ROI_HEADS",
        ),
        (None, dict(NUM_KEYPOINTS=5), "1.png.*annotation .*: it has 17 keypoints .* keypoint head has 5"),
        (change(keypoints=[1, 1, 2] * 4), {}, "annotation .*: it has 4 keypoints .* keypoint head has 17"),
        (change(segmentation=[]), {}, "annotation .*: it has no segmentation, which the mask head needs"),
        (lambda content: content["annotations"].clear(), {}, "no annotation to learn from"),
        (
            lambda content: content["images"][0].update(file_name="none.png"),
            {},
            "none.png.*the file does not exist",
        ),
    ],
)
def test_broken_dataset_is_found_before_training(dataset, edit, options, expected):
    name = dataset(edit or (lambda content: None), **KEYPOINTS)
    with pytest.raises(UserError, match=expected):
        check_config(config(name, [name], **options))


def test_truncated_image_is_found_before_training(dataset, tmp_path):
    name = dataset(**KEYPOINTS)
    cut_image(tmp_path / "1.png")
    with pytest.raises(UserError, match="1.png.*: the file is .*damaged"):
        check_config(config(name))


def test_missing_dataset(dataset, tmp_path):
    name = dataset(**KEYPOINTS)
    (tmp_path / "annotations.json").unlink()
    assert f"dataset '{name}' is not on disk: {tmp_path}/annotations.json is missing" in message(
        check_config, config(name)
    )


@pytest.mark.parametrize(
    "name, prepared",
    [
        ("coco_2017_val", "coco"),
        ("keypoints_coco_2014_train", "coco"),
        ("cityscapes_fine_instance_seg_val", "cityscapes"),
    ],
)
def test_a_published_dataset_that_is_not_there(tmp_path, monkeypatch, name, prepared):
    monkeypatch.chdir(tmp_path)
    wanted = rf"'{name}' is not on disk: .* is missing. `mrcnn-ext datasets prepare {prepared}` gets it ready"
    for use in (load_dataset, open_source):
        with pytest.raises((FileNotFoundError, UserError), match=wanted):
            use(name)
    assert "`mrcnn-ext datasets prepare lvis`" in str(
        not_on_disk("lvis_v1_val", "a file")
    )  # read by a package


def test_unregistered_dataset():
    found = message(check_config, config("coco_2017_trian"))
    assert found.startswith(
        "dataset 'coco_2017_trian' is not registered with detectron2; did you mean coco_2017_train"
    )


def test_keypoint_metadata_is_needed(dataset):
    assert "needs keypoint_names and keypoint_flip_map in its metadata" in message(
        check_config, config(dataset())
    )


def test_dataset_that_cannot_be_evaluated(dataset):
    name = dataset(change(keypoints=[3, 3, 2] * 4), **FOUR_KEYPOINTS)
    assert "its 4 keypoints (head, thorax, abdomen, ...) are not COCO's" in message(
        check_config, config(name, [name], NUM_KEYPOINTS=4)
    )


@pytest.mark.parametrize(
    "edit, metadata, problem",
    [
        (change(segmentation=[]), KEYPOINTS, "it has no segmentation"),
        (
            change(segmentation={"size": [20, 30], "counts": [100, 200, 300]}),
            KEYPOINTS,
            "set INPUT.MASK_FORMAT",
        ),
        (lambda content: content["annotations"].clear(), KEYPOINTS, "no annotation to learn from"),
        (lambda content: None, {}, "has no keypoints"),
    ],
)
def test_validation_losses_leave_out_what_they_cannot_use(dataset, caplog, edit, metadata, problem):
    good, bad = dataset(**KEYPOINTS), dataset(edit, **metadata)
    options = {"num_keypoints": 17, "needs_masks": True, "mask_format": "polygon"}
    dataset(**KEYPOINTS)  # the file is that of the last
    assert names_for_losses([good], **options) == [good] and not caplog.text
    dataset(edit, **metadata)
    assert names_for_losses([bad], **options) == []
    assert f"No validation losses on it: dataset '{bad}'" in caplog.text and problem in caplog.text
    cfg = config(good, [bad])
    assert build_validation_loader(cfg) is None


def test_the_key_of_the_classes_is_the_models(dataset):
    name = dataset(**KEYPOINTS)
    cfg = config(name, [name], num_classes=3)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 3
    assert message(check_config, cfg).endswith("the model 3: set MODEL.RETINANET.NUM_CLASSES")


def test_check_can_be_turned_off(dataset, tmp_path):
    cfg = config(dataset(change(segmentation=[]), **KEYPOINTS))
    cfg.DATASETS.CHECK = False
    check_config(cfg)


def lazy_config(name, num_classes=2):
    loader = dict(dataset=dict(names=name))
    mapper = dict(use_instance_mask=True, use_keypoint=True)
    heads = dict(num_classes=num_classes, keypoint_head=dict(num_keypoints=17))
    return OmegaConf.create(
        dict(
            model=dict(roi_heads=heads),
            dataloader=dict(train=dict(**loader, mapper=mapper), test=loader),
            train={},
        )
    )


def test_lazy_datasets_are_checked(dataset):
    name = dataset(**KEYPOINTS)
    check_lazy_config(lazy_config(name))
    assert "has 2 classes (person, car), the model 3" in message(check_lazy_config, lazy_config(name, 3))
    few = dataset(change(keypoints=[3, 3, 2] * 4), **FOUR_KEYPOINTS)
    cfg = lazy_config(few)
    cfg.model.roi_heads.keypoint_head.num_keypoints = 4
    cfg.dataloader.evaluator = LazyCall(COCOEvaluator)(dataset_name=few)
    assert "its 4 keypoints (head, thorax, abdomen, ...) are not COCO's" in message(check_lazy_config, cfg)
    broken = dataset(change(segmentation=[]), **KEYPOINTS)
    assert "it has no segmentation" in message(check_lazy_config, lazy_config(broken))
    cfg = lazy_config(broken)
    cfg.train.check_datasets = False
    check_lazy_config(cfg)
