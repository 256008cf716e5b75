"""The benchmark of whole evaluations, on a tiny model and dataset. No time is asserted."""

import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.benchmark import throughput
from mrcnn_ext.benchmark.model import Subject, limit_detections
from mrcnn_ext.data import register_scenes
from mrcnn_ext.engine import UserError
from mrcnn_ext.scenes import write_dataset

pytestmark = pytest.mark.detectron2

SMALL = "MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 32"
FEW = "TEST.DETECTIONS_PER_IMAGE 5 INPUT.MIN_SIZE_TEST 64 DATALOADER.NUM_WORKERS 0"
ALL = "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0"


@pytest.fixture
def dataset(tmp_path):
    before, threads = set(DatasetCatalog.list()), torch.get_num_threads()
    write_dataset(tmp_path / "scenes", "easy", num_train=0, num_val=5, formats=["coco"])
    register_scenes(str(tmp_path / "scenes"), "throughput")
    yield "throughput_val"
    torch.set_num_threads(threads)
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def make_subject(dataset):
    return Subject("quickstart.yaml", opts=f"{SMALL} {FEW} {ALL}".split(), dataset=dataset, bf16=False)


def test_row_of_a_dataset(dataset):
    subject = make_subject(dataset)
    limit_detections(subject.stock, 1, 0.9)  # as another row may
    registered = set(DatasetCatalog.list())
    row = throughput.measure_dataset(subject, 3, threads=1)
    assert set(DatasetCatalog.list()) == registered
    predictor = subject.stock.roi_heads.box_predictor
    assert (predictor.test_topk_per_image, predictor.test_score_thresh) == (5, 0.0)
    assert row["instances"] == 5 and row["min_score"] == 0
    assert row["images"] == 3 and row["dataset"] == dataset and not row["bf16"]
    assert row["ours_images_per_s"] == pytest.approx(3 / row["ours_s"])
    for task in ("bbox", "segm", "keypoints"):
        # Random weights: what is found is wrong, in which the evaluators agree.
        assert row[f"ours_{task}_ap"] == pytest.approx(row[f"stock_{task}_ap"], abs=0.1, nan_ok=True)
    text = throughput.line(row)
    assert text.startswith("quickstart, 3 images of throughput_val") and "AP bbox 0.00, 0.00; segm" in text
    assert throughput.header().endswith("stock s      ours s   predict s")


def test_part_of_a_dataset(dataset):
    with throughput.part_of(dataset, 2) as name:
        records = DatasetCatalog.get(name)
        truth = json.loads(Path(MetadataCatalog.get(name).json_file).read_text())
        assert [image["id"] for image in truth["images"]] == [record["image_id"] for record in records]
        assert {a["image_id"] for a in truth["annotations"]} <= {record["image_id"] for record in records}
        assert MetadataCatalog.get(name).thing_classes == MetadataCatalog.get(dataset).thing_classes
    with throughput.part_of(dataset, 0) as name:
        assert len(DatasetCatalog.get(name)) == 5


def test_what_is_no_dataset_is_named(dataset):
    subject = make_subject("")
    with pytest.raises(UserError, match="evaluation needs a registered dataset .--dataset., got ''"):
        throughput.measure_dataset(subject, 1, 1)
    DatasetCatalog.register("throughput_bare", lambda: [])
    try:
        with pytest.raises(UserError, match="throughput_bare: its metadata name no json_file"):
            subject.dataset = "throughput_bare"
            throughput.measure_dataset(subject, 1, 1)
    finally:
        DatasetCatalog.remove("throughput_bare")
        MetadataCatalog.remove("throughput_bare")
