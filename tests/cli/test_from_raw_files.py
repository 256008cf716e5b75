"""From the publishers' archives to tables of results: prepare, train, evaluate, with the commands that a user gives."""

import csv
import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin
from published import cityscapes_archives, coco_archives

from mrcnn_ext.evaluation.published import CITYSCAPES_COLUMNS

pytestmark = pytest.mark.detectron2

# The quickstart's model without keypoints, and small.
SMALL = [
    *"MODEL.KEYPOINT_ON False MODEL.TIMM.ARGS.channels [8,8,16,16] MODEL.FPN.OUT_CHANNELS 16".split(),
    *"MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_MASK_HEAD.CONV_DIM 8 SOLVER.IMS_PER_BATCH 2".split(),
    *"INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64 SOLVER.AMP.ENABLED False SOLVER.MAX_ITER 2".split(),
    *"TEST.REPORT False DATALOADER.NUM_WORKERS 0 MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.0".split(),
]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """$DETECTRON2_DATASETS, in which detectron2's own datasets are registered."""
    prefixes = ("coco_", "keypoints_coco_", "cityscapes_fine_instance", "cityscapes_fine_sem")
    names = [name for name in DatasetCatalog.list() if name.startswith(prefixes)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def register(root):
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)
        builtin.register_all_coco(root)
        builtin.register_all_cityscapes(root)

    register(str(tmp_path))
    yield tmp_path
    register(builtin._root)


def numbers(folder):
    with open(folder / "results.csv", newline="") as file:
        return {(row["table"], row["row"], row["column"]): row["value"] for row in csv.DictReader(file)}


def train_and_evaluate(run, data, val, *options, output="out"):
    """The folders of the results that the training and an evaluation of its checkpoint wrote."""
    words = ("--num-gpus", 0, "--output", output, *SMALL, *options)
    printed = run("train", f"data={data}", "model=quickstart", *words)
    assert f"trained: {output}/model_final.pth" in printed
    run("eval", f"{output}/model_final.pth", f"data={data}", "--num-gpus", 0, "--output", f"{output}_again")
    folders = [Path(folder) / "inference" / val for folder in (output, f"{output}_again")]
    for folder in folders:
        assert {p.name for p in folder.iterdir()} >= {"results.csv", "results.md", "results.png"}
    # A training evaluates its last model as a later evaluation does, but for rounding.
    own, again = (numbers(folder) for folder in folders)
    assert own.keys() == again.keys()
    assert [float(v or -1) for v in own.values()] == pytest.approx(
        [float(v or -1) for v in again.values()], abs=1
    )
    return folders[1]


def test_coco(root, run, monkeypatch):
    archives = root / "downloads"
    archives.mkdir()
    monkeypatch.setattr("mrcnn_ext.data.prepare.coco.COCO_2017", coco_archives(archives, 4, 2))
    printed = run("datasets", "prepare", "coco", "--archives", archives, "--quiet")
    assert f"{root / 'coco'}: ready" in printed
    shutil.rmtree(archives)
    folder = train_and_evaluate(run, "coco", "coco_2017_val")
    found = numbers(folder)
    assert {row for table, row, _ in found if table == "Average precision"} == {"box", "mask"}
    assert found["Average precision", "box", "AP50"] != ""
    classes = {row for table, row, _ in found if table == "AP of each class"}
    assert len(classes) == 80 and "toothbrush" in classes
    assert found["AP of each class", "toothbrush", "mask"] == "", "there is none in the data"

    # With a keypoint head, on the annotations of persons.
    options = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)")
    found = numbers(train_and_evaluate(run, "coco", "keypoints_coco_2017_val", *options, output="people"))
    assert {row for table, row, _ in found if table == "Average precision"} == {"box", "mask", "keypoints"}
    assert found["Average precision", "keypoints", "AP50"] != ""


def test_cityscapes(root, run, monkeypatch):
    archives = root / "downloads"
    archives.mkdir()
    monkeypatch.setattr("mrcnn_ext.data.prepare.cityscapes.CITYSCAPES", cityscapes_archives(archives, 3, 2))
    printed = run("datasets", "prepare", "cityscapes", "--archives", archives, "--quiet")
    assert f"{root / 'cityscapes'}: ready" in printed
    folder = train_and_evaluate(run, "cityscapes", "cityscapes_fine_instance_seg_val")
    found = numbers(folder)
    table = next(table for table, _, _ in found if table.startswith("Cityscapes"))
    own = {column: found[table, "this run, on val", column] for column in CITYSCAPES_COLUMNS}
    assert own["AP val"] != "" and own["AP test"] == ""
    assert any(own[name] != "" for name in CITYSCAPES_COLUMNS[3:])
    assert found[table, "Mask R-CNN, fine + COCO", "AP val"] == "36.4"
    assert found["Average precision by COCO's measure", "mask", "AP50"] != ""
    assert "| **this run, on val** |" in (folder / "results.md").read_text()
