"""tools/train_net.py and tools/lazyconfig_train_net.py, run as programs."""

import json
import math
import re
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import instantiate

from mrcnn_ext.engine import UserError
from mrcnn_ext.engine.described import described_lazy_config
from mrcnn_ext.engine.description import describe_lazily
from mrcnn_ext.engine.lazy import load_lazy_config

pytestmark = pytest.mark.detectron2

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}


def test_training_leaves_checkpoint_metrics_and_a_readable_line(trained, read_metrics, read_scores):
    names = {path.name for path in trained.folder.iterdir()}
    assert {"model_final.pth", "last_checkpoint", "metrics.json", "config.yaml", "log.txt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)

    rows = read_metrics(trained.folder)
    train_rows = [row for row in rows if "total_loss" in row]
    assert [row["iteration"] for row in train_rows] == [19, 39, 59, 79]
    assert train_rows[-1]["total_loss"] < train_rows[0]["total_loss"]
    validation = {row["iteration"]: row for row in rows if "val/total_loss" in row}
    assert sorted(validation) == [39, 80]
    for row in validation.values():
        assert row["val/total_loss"] == pytest.approx(sum(row[f"val/{name}"] for name in LOSSES))

    line = next(line for line in trained.log.splitlines() if "iter 80/80" in line)
    pattern = (
        r"eta 0:00:00 \| loss [\d.]+ \((.*)\) \| [\d.]+ s/iter \(data [\d.e-]+\) \| lr 0.01 \| mem (\d+)M"
    )
    losses, memory = re.search(pattern, line).groups()
    assert {f"loss_{part.split()[0]}" for part in losses.split(", ")} == LOSSES
    assert 100 < int(memory) < 10000
    assert read_scores(trained.log)["bbox"][1] > 10, "it has learned nothing"


@pytest.mark.parametrize(
    "how",
    [
        "one process",
        "two processes",
        pytest.param("four processes", marks=pytest.mark.slow),  # of which two have an image more
        "two machines",
    ],
)
def test_evaluation_is_the_same_in_one_process_and_in_several(
    how, trained, run, run_here, start, configs, tmp_path, read_scores
):
    args = ["train_net", "--config-file", configs.yaml, "--eval-only"]
    opts = ["MODEL.WEIGHTS", trained.weights, "OUTPUT_DIR", tmp_path]
    if how == "two machines":
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{s.getsockname()[1]}"
        shared = ["--num-gpus", 0, "--num-machines", 2, "--dist-url", url]
        other = start(*args, *shared, "--machine-rank", 1, *opts)
        output = run(*args, *shared, "--machine-rank", 0, *opts)
        assert other.wait(timeout=600) == 0, other.log.read_text()
    else:
        number = {"two processes": 2, "four processes": 4}.get(how, 1)
        flags = ["--num-gpus", 0, "--num-processes", number] if number > 1 else []
        output = run_here(*args, *flags, *opts)
    devices = {"one process": 1, "four processes": 4}.get(how, 2)
    assert f"on {devices} devices" in output
    expected, found = read_scores(trained.log), read_scores(output)
    assert set(found) == {"bbox", "segm"}
    for task in expected:
        assert found[task] == pytest.approx(expected[task], nan_ok=True)


# Every anchor and proposal is sampled and every image has as many: the mean over the images of two processes
# is then the mean over one process's batch. No batch norm and no flip, for the same reason.
WITHOUT_CHANCE = """
MODEL.MASK_ON False MODEL.RESNETS.NORM FrozenBN MODEL.FPN.NORM '' INPUT.RANDOM_FLIP none
MODEL.RPN.BATCH_SIZE_PER_IMAGE 100000 MODEL.RPN.NMS_THRESH 1.0
MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 100 MODEL.ROI_HEADS.POSITIVE_FRACTION 1.0
SOLVER.MAX_ITER 3 VAL_LOSS.ENABLED False DATASETS.TEST ()
""".split()


def test_training_in_two_processes_of_torchrun_equals_training_in_one(run, configs, tmp_path):
    weights = []
    for num_processes in (0, 2):
        folder = tmp_path / str(num_processes)
        args = ["--config-file", configs.yaml, "OUTPUT_DIR", folder, *WITHOUT_CHANCE]
        run("train_net", *args, torchrun=num_processes)
        checkpoint = torch.load(folder / "model_final.pth")
        assert checkpoint["iteration"] == 2
        weights.append(checkpoint["model"])
    one, two = weights
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_killed_training_resumes(start, run, configs, tmp_path, read_metrics):
    options = [
        "OUTPUT_DIR",
        tmp_path,
        "SOLVER.CHECKPOINT_PERIOD",
        1,
        "VAL_LOSS.ENABLED",
        False,
        "DATASETS.TEST",
        "()",
    ]
    process = start("train_net", "--config-file", configs.yaml, *options, "SOLVER.MAX_ITER", 100000)
    deadline = time.monotonic() + 600
    while len(list(tmp_path.glob("model_*.pth"))) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()

    last = tmp_path / (tmp_path / "last_checkpoint").read_text()
    finished = torch.load(last)["iteration"]
    assert finished >= 2
    max_iter = finished + 4
    output = run(
        "train_net", "--config-file", configs.yaml, "--resume", *options, "SOLVER.MAX_ITER", max_iter
    )
    assert f"Starting training from iteration {finished + 1}" in output
    final = torch.load(tmp_path / "model_final.pth")
    assert final["iteration"] == max_iter - 1
    # The optimiser and the schedule went on, too.
    assert final["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == max_iter
    assert read_metrics(tmp_path)[-1]["iteration"] == max_iter - 1


def test_test_time_augmentation(run, trained, configs, tmp_path, read_scores):
    options = ["MODEL.WEIGHTS", trained.weights, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "(48,64)"]
    output = run("train_net", "--config-file", configs.yaml, "--eval-only", "OUTPUT_DIR", tmp_path, *options)
    assert output.count("copypaste: Task: bbox") == 2
    assert (tmp_path / "inference_TTA").is_dir()


def test_autocast_on_the_cpu(run, configs, tmp_path, read_metrics):
    run("train_net", "--config-file", configs.yaml, "OUTPUT_DIR", tmp_path, "SOLVER.AMP.ENABLED", True)
    assert math.isfinite(read_metrics(tmp_path)[0]["total_loss"])
    assert all(
        value.dtype != torch.bfloat16 for value in torch.load(tmp_path / "model_final.pth")["model"].values()
    )


def test_lazy_config_trains_resumes_and_evaluates(run, configs, tmp_path, read_metrics, read_scores):
    args = ["lazyconfig_train_net", "--config-file", configs.lazy]
    options = [f"train.output_dir={tmp_path}", "train.log_period=1"]
    run(*args, *options)
    output = run(*args, "--resume", *options, "train.max_iter=4")
    assert "Starting training from iteration 2" in output
    rows = [row for row in read_metrics(tmp_path) if "total_loss" in row]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert {f"val/{name}" for name in LOSSES} <= set(read_metrics(tmp_path)[-1])
    weights = tmp_path / "model_final.pth"
    assert torch.load(weights)["iteration"] == 3

    scores = read_scores(run(*args, "--eval-only", *options, f"train.init_checkpoint={weights}"))
    assert scores.keys() == {"bbox", "segm"}
    assert scores["bbox"] == pytest.approx(read_scores(output)["bbox"], nan_ok=True)


def test_lazy_config_in_two_processes(run, configs, trained, tmp_path, read_scores):
    args = ["lazyconfig_train_net", "--config-file", configs.lazy, "--num-gpus", 0, "--num-processes", 2]
    weights = f"train.init_checkpoint={trained.weights}"
    output = run(*args, "--eval-only", f"train.output_dir={tmp_path}", weights)
    assert "on 2 devices" in output
    assert read_scores(output)["segm"] == pytest.approx(read_scores(trained.log)["segm"], nan_ok=True)
    run(*args, f"train.output_dir={tmp_path}", weights)
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 1


def test_cityscapes_by_config_alone(run, configs, datasets, tmp_path):
    """detectron2's own dataset name, loader and evaluator, in two processes."""
    pytest.importorskip("cityscapesscripts")
    import cv2
    import numpy as np

    for i in range(2):
        folders = {
            kind: datasets / "cityscapes" / kind / "val" / "town" for kind in ("leftImg8bit", "gtFine")
        }
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        stem = f"town_{i:06d}_000019"
        ids = np.full((64, 80), 7, np.uint16)
        ids[10:50, 10:60] = 26000
        car = {"label": "car", "polygon": [[10, 10], [59, 10], [59, 49], [10, 49]]}
        polygons = {"imgHeight": 64, "imgWidth": 80, "objects": [car]}
        cv2.imwrite(str(folders["leftImg8bit"] / f"{stem}_leftImg8bit.png"), np.zeros((64, 80, 3), np.uint8))
        cv2.imwrite(str(folders["gtFine"] / f"{stem}_gtFine_instanceIds.png"), ids)
        cv2.imwrite(str(folders["gtFine"] / f"{stem}_gtFine_labelIds.png"), (ids // 1000).astype(np.uint8))
        (folders["gtFine"] / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons))

    name = "cityscapes_fine_instance_seg_val"
    options = [
        "DATASETS.TRAIN",
        f"('{name}',)",
        "DATASETS.TEST",
        f"('{name}',)",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        8,
    ]
    output = run(
        "train_net",
        "--config-file",
        configs.yaml,
        "--num-gpus",
        0,
        "--num-processes",
        2,
        "OUTPUT_DIR",
        tmp_path,
        *options,
    )
    assert re.search(r"copypaste: Task: segm\n.*copypaste: AP,AP50\n.*copypaste: \d+\.\d+,\d+\.\d+", output)
    assert re.search(r"car +: ", output) and re.search(r"average +: ", output)


def test_user_error_is_one_line_and_exit_code_2(run, configs, tmp_path):
    output = run("train_net", "--config-file", configs.yaml, "MODEL.MASKON", True, code=2)
    lines = [line for line in output.splitlines() if "Warning" not in line and not line.startswith("  ")]
    assert lines == ["error: command line: unknown config key MODEL.MASKON; did you mean MODEL.MASK_ON?"]


def test_user_error_in_two_processes_is_told_once(run, configs):
    args = ["--config-file", configs.yaml, "--num-gpus", 0, "--num-processes", 2]
    output = run("train_net", *args, "MODEL.MASKON", True, code=2)
    assert output.count("error: command line: unknown config key MODEL.MASKON") == 1
    assert "Traceback" not in output


def test_bug_keeps_its_traceback(run, tmp_path, configs):
    config = tmp_path / "broken.py"
    text = (
        Path(configs.lazy)
        .read_text()
        .replace("def build(yaml):", "def build(yaml):\n    raise RuntimeError('a bug')")
    )
    config.write_text(text)
    assert "Traceback" in run("lazyconfig_train_net", "--config-file", config, code=1)


def test_help_gives_examples(run):
    output = run("train_net", "--help")
    assert "train_net.py --config-file CONFIG --num-gpus 0 --num-processes 2" in output
    assert "torchrun" in output and "--resume" in output and "--dist-url" in output


PLAIN_LAZY = """
from mrcnn_ext import model_zoo

cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py")
model, dataloader, optimizer = cfg.model, cfg.dataloader, cfg.optimizer
lr_multiplier, train = cfg.lr_multiplier, cfg.train
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages["stride_in_1x1"]
model.backbone.out_channels = 16
model.proposal_generator.head.in_channels = 16
model.proposal_generator.post_nms_topk = (20, 20)
model.roi_heads.box_head.input_shape.channels = 16
model.roi_heads.box_head.fc_dims = [32]
model.roi_heads.box_predictor.input_shape.channels = 32
model.roi_heads.box_predictor.test_score_thresh = 0.0
model.roi_heads.mask_head.input_shape.channels = 16
model.roi_heads.mask_head.conv_dims = [16, 16]
dataloader.test.dataset.names = "coco_2017_val_100"
dataloader.test.num_workers = 0
dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=96)
train.device = "cpu"
del cfg
"""


def test_a_lazy_checkpoint_is_evaluated_and_exported_alone(run, tmp_path, read_scores):
    config = tmp_path / "config.py"
    config.write_text(PLAIN_LAZY)
    cfg = load_lazy_config(str(config))
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    weights = tmp_path / "model.pth"
    torch.save({"model": model.state_dict(), "about": describe_lazily(cfg, ["coco_2017_val_100"])}, weights)
    command = ["lazyconfig_train_net", "--eval-only"]
    options = [f"train.init_checkpoint={weights}", "dataloader.test.num_workers=0"]
    expected = run(*command, "--config-file", config, *options, f"train.output_dir={tmp_path}/with")
    config.unlink()
    alone = run(*command, *options, f"train.output_dir={tmp_path}/without")
    assert read_scores(alone).keys() == {"bbox", "segm"}
    for task, scores in read_scores(expected).items():
        assert read_scores(alone)[task] == pytest.approx(scores, nan_ok=True)
    assert (tmp_path / "without").is_dir()
    run("export_model", "--weights", weights, "--output", tmp_path / "model.ts", "--device", "cpu")
    assert (tmp_path / "model.ts").is_file()


@pytest.mark.parametrize(
    "about, message",
    [
        ({"kind": "lazy", "config": "{model: {}, mapper: {}, device: cpu}"}, "does not hold its test data"),
        ({"kind": "yaml", "config": "{}"}, "was trained with a yaml config"),
        (
            {
                "kind": "lazy",
                "config": "{model: {_target_: os.system}, datasets: [a], device: cpu, evaluator: {_target_: x}}",
            },
            "its config calls os.system, which is no component",
        ),
    ],
)  # fmt: skip
def test_checkpoints_that_are_not_evaluated_alone(tmp_path, about, message):
    weights = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1)}, "about": about}, weights)
    with pytest.raises(UserError, match=message):
        described_lazy_config([f"train.init_checkpoint={weights}"])
    with pytest.raises(UserError, match="give --config-file, or train.init_checkpoint=FILE"):
        described_lazy_config(["train.device=cpu"])
