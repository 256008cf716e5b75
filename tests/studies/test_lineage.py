"""The study of the lineage: its steps, what it trains and keeps, its table, plot and pictures."""

import json

import pytest

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from mrcnn_ext.data import selective_search
from mrcnn_ext.data.proposals import write_proposals
from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.studies.lineage import training
from mrcnn_ext.studies.lineage.cli import main
from mrcnn_ext.studies.lineage.report import averages, checks, lineage_figure, lineage_table, step_sheet
from mrcnn_ext.studies.lineage.steps import Lineage, load_lineage
from mrcnn_ext.studies.lineage.training import SCENES, prepare, train_step

pytestmark = pytest.mark.detectron2


@pytest.fixture(autouse=True)
def catalog():
    yield
    for name in [name for name in DatasetCatalog.list() if name.startswith(SCENES)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_each_step_takes_one_thing_away():
    steps = load_lineage().steps
    models = {}
    for name, step in steps.items():
        cfg = load_config(step.file, [part for pair in step.options.items() for part in pair])
        models[name] = build_model(cfg)
    shapes = {
        name: sorted(tuple(p.shape) for p in model.parameters() if p.requires_grad)
        for name, model in models.items()
    }
    assert shapes["rcnn_R_50"] == shapes["fast_rcnn_R_50"], "the same network, on crops or on the image"
    rpn = sorted(tuple(p.shape) for p in models["faster_rcnn_R_50"].proposal_generator.parameters())
    assert sorted(shapes["fast_rcnn_R_50"] + rpn) == shapes["faster_rcnn_R_50"]
    assert shapes["mask_rcnn_R_50_FPN_ROIPool"] == shapes["mask_rcnn_R_50_FPN"] > []
    pools = [models[n].roi_heads.box_pooler.pooler_type for n in list(steps)[1:]]
    assert pools == ["ROIPool"] * 4 + ["ROIAlignV2"]


def test_a_step_is_trained_once_and_shown(tmp_path, monkeypatch):
    study = load_lineage()
    study = Lineage({**study.scenes, "num_train": 4, "num_val": 2}, study.proposals, study.steps)
    made = []

    def proposals(dicts, output, **options):
        made.append(options["limit"])
        boxes = []
        for record in dicts:
            boxes.append([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in record["annotations"])])
            boxes[-1].append([0, 0, record["width"], record["height"]])
        write_proposals(
            output, [r["image_id"] for r in dicts], boxes, [[-k for k in range(len(b))] for b in boxes]
        )

    monkeypatch.setattr(training, "make_proposals", proposals)
    assert training.make_proposals is not selective_search.make_proposals
    prepare(study, tmp_path)
    assert made == [300, 300]
    step = study.steps["fast_rcnn_R_50"]
    result = train_step(step, 0, tmp_path, iterations=2)
    assert set(result["seconds"]) == {"CNN", "heads"} and min(result["seconds"].values()) > 0
    assert "bbox/AP" in result["metrics"] and result["iterations"] == 2
    path = tmp_path / step.name / "seed0" / "result.json"
    path.write_text(json.dumps({**result, "metrics": {"bbox/AP": 12.3, "bbox/AP50": 45.6}}))
    again = train_step(step, 0, tmp_path, iterations=2)
    assert again["metrics"]["bbox/AP"] == 12.3, "trained again"
    rows = {step.name: averages([again, {**again, "metrics": {"bbox/AP": 14.3, "bbox/AP50": 45.6}}], 0.5)}
    table = lineage_table(study, rows)
    assert "| Fast R-CNN | 13.3 | 45.6 | – | – | 500.0 |" in table and "Mask R-CNN" not in table
    sheet = step_sheet(study, tmp_path, 0, 0)
    assert sheet.shape[2] == 3 and sheet.std() > 10


def test_what_each_step_buys():
    study = load_lineage()
    rows = {}
    for name, seconds, points in (
        ("rcnn_R_50", {"CNN": 1.0, "heads": 0.1, "proposals": 0.3}, 10),
        ("fast_rcnn_R_50", {"CNN": 0.01, "heads": 0.1, "proposals": 0.3}, 12),
        ("faster_rcnn_R_50", {"CNN": 0.01, "heads": 0.1, "proposals": 0.003}, 15),
        ("faster_rcnn_R_50_FPN", {"CNN": 0.01, "heads": 0.1, "proposals": 0.003}, 14),
        ("mask_rcnn_R_50_FPN_ROIPool", {"CNN": 0.01, "heads": 0.1, "proposals": 0.003}, 14),
        ("mask_rcnn_R_50_FPN", {"CNN": 0.01, "heads": 0.1, "proposals": 0.003}, 16),
    ):
        metrics = {"bbox/AP": points, "bbox/AP50": 2 * points}
        if name.startswith("mask"):
            metrics |= {"segm/AP": points, "segm/AP75": points}
        others = {"parameters": 1e6, "proposals": 300, "train_seconds": 10.0, "iterations": 2}
        rows[name] = averages([{"metrics": metrics, "seconds": seconds, **others}], None)
    lines = checks(rows)
    assert (
        lines[0].startswith("Fast R-CNN's CNN takes 1/100 ") and "3.0 ms where selective search" in lines[1]
    )
    assert "bbox/AP -1.0 (expected: more)" in lines[2] and "segm/AP75 +2.0" in lines[3]
    times, points = lineage_figure(study, rows).axes
    assert times.get_xscale() == "log" and len(times.containers) == 3 == len(points.containers)
    assert [bar.get_width() for bar in times.containers[1]] == pytest.approx([1000, 10, 10, 10, 10, 10])


def test_one_process_prepares_at_a_time(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    held = []

    def prepare(lineage, output, *args):
        with open(output / "prepare.lock", "w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)

    monkeypatch.setattr(training, "prepare", prepare)
    monkeypatch.setattr(training, "train_step", lambda step, *args: {"metrics": {}})
    with pytest.raises(SystemExit):  # there are no results to report
        main(["--output", str(tmp_path), "--steps", "faster_rcnn_R_50"])
    assert held == [True], "two processes would write the same files"
