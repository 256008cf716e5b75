"""The benchmark of whole models: agreement of detections, stages, and rows of a tiny model. No time is asserted."""

import csv

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.structures import Boxes, Instances

from mrcnn_ext.benchmark import agreement as agreements
from mrcnn_ext.benchmark import model as benchmark
from mrcnn_ext.benchmark import stages
from mrcnn_ext.benchmark.tables import write_csv
from mrcnn_ext.modeling import LazyMasks

pytestmark = pytest.mark.detectron2

SIZE = (60, 80)
BOXES = [[10.0, 10, 30, 40], [40, 5, 70, 50], [12, 12, 32, 42]]


def detections(boxes, classes, shift=0.0):
    found = Instances(SIZE, pred_boxes=Boxes(torch.tensor(boxes) + shift))
    found.pred_classes = torch.tensor(classes)
    found.scores = torch.linspace(0.9, 0.1, len(boxes))
    found.pred_masks = LazyMasks(torch.ones(len(boxes), 1, 28, 28), found.pred_boxes.tensor, SIZE)
    found.pred_keypoints = torch.cat([found.pred_boxes.tensor[:, None, :2].expand(-1, 5, -1)] * 2, dim=2)[
        ..., :3
    ]
    return found


def test_equal_detections_in_another_order_agree():
    a = detections(BOXES, [0, 1, 1])
    result = agreements.agreement([a], [a[torch.tensor([2, 0, 1])]])
    assert result["detections"] == 3 and result["matched"] == 1 and result["mask_iou"] == 1
    assert result["box_px"] == result["score"] == result["keypoint_px"] == 0


def test_differences_are_those_of_the_detections_that_match():
    a, b = detections(BOXES, [0, 1, 1]), detections(BOXES, [0, 2, 1], shift=1.0)
    b.pred_masks = b.pred_masks.tensor  # bitmaps compare with lazy masks
    result = agreements.agreement([a], [b])
    assert result["matched"] == pytest.approx(2 / 3) and result["box_px"] == 1
    assert result["keypoint_px"] == pytest.approx(2**0.5) and 0.8 < result["mask_iou"] < 1


def test_a_detection_matches_once_and_low_scores_do_not_count():
    a, b = detections(BOXES[:1] * 2, [0, 0]), detections(BOXES[:1], [0])
    assert agreements.agreement([a], [b])["matched"] == 0.5
    assert agreements.agreement([a], [b], min_score=0.5)["matched"] == 1


def test_nothing_to_compare_is_nan():
    a, none = detections(BOXES, [0, 1, 1]), detections(BOXES, [0, 1, 1])[:0]
    missed, empty = agreements.agreement([a], [none]), agreements.agreement([none], [a])
    assert missed["matched"] == 0 and missed["box_px"] != missed["box_px"]
    assert empty["detections"] == 0 and empty["matched"] != empty["matched"]


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subject():
    small = "MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32"
    return benchmark.Subject("quickstart.yaml", opts=small.split())


CASE = benchmark.Case(height=96, width=128, batch=2, instances=5)


def test_time_is_charged_to_the_innermost_stage(subject, monkeypatch):
    model, now = subject.stock, [0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    heads = model.roi_heads
    parts = [model.backbone, model.proposal_generator, heads.box_pooler, heads.box_head, heads.keypoint_head]

    def pass_time(seconds):
        def hook(*_):
            now[0] += seconds

        return hook

    handles = [module.register_forward_hook(pass_time(10**i)) for i, module in enumerate(parts)]
    handles.append(heads.mask_head.deconv.register_forward_hook(pass_time(100_000)))

    def run():
        with torch.no_grad():
            model(subject.inputs(CASE))

    try:
        spent = stages.breakdown(model, run, torch.device("cpu"))
    finally:
        for handle in handles:
            handle.remove()
    assert tuple(spent) == stages.STAGES
    assert spent == {
        "preprocess": 0,
        "backbone": 1,
        "RPN": 10,
        "pool": 100,
        "heads": 101_000,
        "decode": 10_000,
        "postprocess": 0,
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert "layers" not in vars(heads.mask_head) and "preprocess_image" not in vars(model)


@pytest.mark.parametrize("task", ["inference", "evaluation"])
def test_row_of_inference(subject, task):
    case = benchmark.Case(task, 96, 128, 2, 5)
    row = benchmark.measure(subject, case, 0.0, threads=1)
    assert row["detections"] == 10 and row["fp32_matched"] == 1 and row["fp32_box_px"] < 0.01
    assert row["same_box_mask_iou_mean"] > 0.8 and row["same_box_keypoint_px"] >= 0
    assert row["ratio"] == pytest.approx(row["stock_ms"] / row["ours_ms"])
    assert row["ours_images_per_s"] == pytest.approx(2000 / row["ours_ms"])
    assert row["stock_p95_ms"] >= row["stock_ms"] and row["ours_backbone_ms"] > 0
    assert benchmark.stages(row).startswith(f"quickstart, {task} 96 x 128") and "RPN" in benchmark.stages(row)
    assert benchmark.line(row).startswith(f"{task} 96 x 128, batch 2, 5 detections")


def test_row_of_a_training_step(subject):
    row = benchmark.measure(subject, benchmark.Case("training", 96, 128, 2, 3), 0.0, threads=1)
    assert row["loss"] > 0 and row["loss_difference"] < 0.1
    assert "losses within" in benchmark.line(row)


def test_detections_of_another_model_are_not_timed(subject, monkeypatch):
    def other(**_):
        torch.manual_seed(1)
        return benchmark.build_model(subject.cfg).eval()

    monkeypatch.setattr(subject, "accelerated", other)
    with pytest.raises(AssertionError, match="quickstart, inference .*there is nothing to compare"):
        benchmark.measure(subject, CASE, 0.0, threads=1)


def test_csv_and_plot(subject, tmp_path):
    rows = [
        benchmark.measure(subject, benchmark.Case(task, 96, 128, 1, 3), 0.0, 1) for task in benchmark.TASKS
    ]
    write_csv(rows, tmp_path / "model.csv")
    benchmark.plot(rows, tmp_path / "model.png")
    with open(tmp_path / "model.csv") as file:
        read = list(csv.DictReader(file))
    assert [row["task"] for row in read] == list(benchmark.TASKS)
    assert float(read[0]["ours_ms"]) == rows[0]["ours_ms"] and read[2]["ours_backbone_ms"] == ""
    assert (tmp_path / "model.png").stat().st_size > 10_000


def test_sweep_varies_one_thing_at_a_time():
    cases = benchmark.sweep(benchmark.TASKS, [(96, 128), (64, 64)], [1, 2], [5, 50], quick=False)
    base = benchmark.Case("inference", 96, 128, 1, 5)
    assert cases[0] == base and len(set(cases)) == len(cases)
    assert {(c.height, c.batch, c.instances) for c in cases if c.task == "inference"} == {
        (96, 1, 5),
        (64, 1, 5),
        (96, 2, 5),
        (96, 1, 50),
    }
    assert [c.task for c in benchmark.sweep(benchmark.TASKS, [(96, 128)], [1], [5], quick=True)] == list(
        benchmark.TASKS
    )
