"""A tiny dataset under a name of detectron2's own, a tiny model in yaml and LazyConfig, the tools to run."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for tool_process

import tool_process  # noqa: E402

ROOT = Path(__file__).parents[2]
DATASET = "coco_2017_val_100"
NUM_IMAGES = 6

YAML = f"""
VERSION: 2
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  MASK_ON: True
  PIXEL_STD: [57.375, 57.12, 58.395]
  BACKBONE: {{NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}}
  RESNETS:
    DEPTH: 50
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 4
    NORM: BN
    OUT_FEATURES: [res2, res3, res4, res5]
  FPN: {{IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16, NORM: BN}}
  ANCHOR_GENERATOR: {{SIZES: [[8], [16], [32], [64], [128]], ASPECT_RATIOS: [[1.0]]}}
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    BATCH_SIZE_PER_IMAGE: 32
    PRE_NMS_TOPK_TRAIN: 50
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TRAIN: 20
    POST_NMS_TOPK_TEST: 20
  ROI_HEADS:
    NAME: StandardROIHeads
    IN_FEATURES: [p2, p3, p4, p5]
    BATCH_SIZE_PER_IMAGE: 16
    NUM_CLASSES: 80
    SCORE_THRESH_TEST: 0.0
  ROI_BOX_HEAD: {{NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}}
  ROI_MASK_HEAD: {{NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 7}}
DATASETS: {{TRAIN: [{DATASET}], TEST: [{DATASET}]}}
INPUT: {{MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 96, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96}}
DATALOADER: {{NUM_WORKERS: 0}}
SOLVER: {{IMS_PER_BATCH: 2, MAX_ITER: 2, BASE_LR: 0.01, WARMUP_ITERS: 0, STEPS: []}}
SEED: 1
"""

# The same model: LazyConfig gives the loaders, the optimiser and the schedule.
LAZY = """
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import build_model
from mrcnn_ext.engine import load_config
from mrcnn_ext.evaluation import COCOEvaluator

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
train = model_zoo.get_config("common/train.py").train

def build(yaml):
    return build_model(load_config(yaml))

model = L(build)(yaml=YAML_FILE)
for loader in (dataloader.train, dataloader.test):
    loader.num_workers = 0
    loader.dataset.names = "DATASET"
    loader.mapper.augmentations[0].short_edge_length = 64
    loader.mapper.augmentations[0].max_size = 96
dataloader.train.total_batch_size = 2
dataloader.evaluator = L(COCOEvaluator)(dataset_name="DATASET", tasks=("bbox", "segm"))
optimizer.lr = 0.01
del loader  # every module-level dict is part of the config
train.update(device="cpu", init_checkpoint="", max_iter=2, eval_period=0, seed=1)
"""


def _write_datasets(root, upright=()):
    """Bright rectangles, "person", on dark noise, as a folder for DETECTRON2_DATASETS.

    Args:
        root (Path): the folder.
        upright: numbers of images that are higher than wide.
    """
    images, annotations = root / "coco" / "val2017", root / "coco" / "annotations"
    images.mkdir(parents=True)
    annotations.mkdir()
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": []}
    for i in range(NUM_IMAGES):
        height, width = (80, 64) if i in upright else (64, 80)
        image = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        x, y, w, h = (int(v) for v in (*rng.integers(2, 20, 2), *rng.integers(25, 40, 2)))
        image[y : y + h, x : x + w] = 220
        cv2.imwrite(str(images / f"{i}.png"), image)
        content["images"].append(dict(id=i, file_name=f"{i}.png", height=height, width=width))
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        content["annotations"].append(
            dict(
                id=i + 1,
                image_id=i,
                category_id=1,
                bbox=[x, y, w, h],
                area=w * h,
                iscrowd=0,
                segmentation=[polygon],
            )
        )
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    content["categories"] = [dict(id=c["id"], name=c["name"]) for c in COCO_CATEGORIES if c["isthing"]]
    (annotations / "instances_val2017_100.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def write_datasets():
    return _write_datasets


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A folder for DETECTRON2_DATASETS."""
    return _write_datasets(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="session")
def mixed_datasets(tmp_path_factory):
    """The same with images of both orientations, which do not share batches."""
    return _write_datasets(tmp_path_factory.mktemp("mixed_datasets"), upright=(1, 2, 4))


@pytest.fixture(scope="session")
def configs(tmp_path_factory):
    """Paths of the yaml and of the LazyConfig."""
    folder = tmp_path_factory.mktemp("configs")
    yaml, lazy = folder / "tiny.yaml", folder / "tiny.py"
    yaml.write_text(YAML)
    lazy.write_text(LAZY.replace("YAML_FILE", repr(str(yaml))).replace("DATASET", DATASET))
    return SimpleNamespace(yaml=str(yaml), lazy=str(lazy))


@pytest.fixture(scope="session")
def environment(datasets):
    return {
        **os.environ,
        "DETECTRON2_DATASETS": str(datasets),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts a tool: start("train_net", *args); ``torchrun=N`` has torchrun start N processes.

    The output goes to a file, the ``log`` of the process: nobody reads a pipe while the tool runs.
    """

    def start_tool(name, *args, torchrun=0):
        launcher = (
            ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", "--standalone"]
            if torchrun
            else []
        )
        command = [sys.executable, *launcher, str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
        log = tmp_path_factory.mktemp("log") / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        process.log = log
        return process

    return start_tool


@pytest.fixture(scope="module")
def start_here(environment, tmp_path_factory):
    """As `start`, from a server that has imported everything: it takes no seconds until the tool begins."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mrcnn_ext.engine", "mrcnn_ext.engine.lazy", "mrcnn_ext.engine.train_net"]
    )
    # The server takes the environment over when it starts, with the first process; another test's has its own.
    forkserver._forkserver._stop()
    patch = pytest.MonkeyPatch()

    def start_tool(tool, *arguments, datasets=None):
        for key, value in environment.items():
            patch.setenv(key, value)
        if datasets is not None:
            patch.setenv("DETECTRON2_DATASETS", str(datasets))
        log = tmp_path_factory.mktemp("log") / "log.txt"
        process = context.Process(target=tool_process.run_tool, args=(tool, arguments, str(log)))
        process.start()
        return tool_process.ToolProcess(process, log)

    yield start_tool
    forkserver._forkserver._stop()
    patch.undo()


@pytest.fixture(scope="session")
def run(start):
    """Runs a tool and returns its output; fails on another exit code than ``code``."""
    return partial(_run_tool, start)


@pytest.fixture(scope="module")
def run_here(start_here):
    """As `run`, by `start_here`."""
    return partial(_run_tool, start_here)


def _run_tool(start, name, *args, code=0, **kwargs):
    process = start(name, *args, **kwargs)
    try:
        process.wait(timeout=600)
    finally:
        process.kill()
    output = process.log.read_text()
    assert process.returncode == code, output
    return output


@pytest.fixture(scope="session")
def trained(tmp_path_factory, run, configs):
    """Output folder of a training with tools/train_net.py that found some of the rectangles."""
    folder = tmp_path_factory.mktemp("trained")
    log = run(
        "train_net", "--config-file", configs.yaml, "OUTPUT_DIR", folder, "SOLVER.MAX_ITER", 80, *EVAL_PERIOD
    )
    return SimpleNamespace(folder=folder, log=log, weights=str(folder / "model_final.pth"))


EVAL_PERIOD = ("TEST.EVAL_PERIOD", 40)


@pytest.fixture(scope="session")
def read_scores():
    """Reads {"bbox": [AP, AP50, ...], "segm": ...} from a tool's output."""

    def read(output):
        rows = re.findall(r"copypaste: Task: (\w+)\n.*\n.*copypaste: ([\d.,na-]+)", output)
        return {task: [float(value) for value in values.split(",")] for task, values in rows}

    return read


@pytest.fixture(scope="session")
def read_metrics():
    """Reads metrics.json: a list of dicts."""

    def read(folder):
        return [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]

    return read
