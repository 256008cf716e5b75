"""A tiny study from scenes to report, by the tool's own path; what is finished is not run again."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("detectron2")

import torch

from mrcnn_ext.config_files import get_config_file
from mrcnn_ext.studies.ablations import load_study, run_study, write_report

pytestmark = pytest.mark.detectron2

ROWS = {
    "scenes": {"preset": "easy", "num_train": 6, "num_val": 2, "seed": 0, "height": 96, "width": 128},
    "starts": {"only": {"base": "stride32.yaml", "MODEL.MASK_ON": False}},
    "rows": [
        {
            "base": "stride32.yaml",
            "start": "only",
            "rows": {"good": {}, "broken": {"MODEL.ROI_MASK_HEAD.NAME": "NoSuchMaskHead"}},
        }
    ],
    "tables": {
        "both": {
            "title": "Both",
            "metrics": ["segm/AP", "boundary/AP"],
            "costs": "mask",
            "rows": {"good": {"label": "good"}, "broken": {"label": "broken"}},
        }
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for base in ("Base.yaml", "stride32.yaml"):
        shutil.copy(get_config_file(f"ablations/{base}"), folder)
    (folder / "rows.yaml").write_text(yaml.safe_dump(ROWS))
    small = {
        "SOLVER.MAX_ITER": 2,
        "SOLVER.IMS_PER_BATCH": 2,
        "INPUT.MIN_SIZE_TRAIN": (96,),
        "INPUT.MIN_SIZE_TEST": 96,
    }
    return load_study(folder / "rows.yaml").with_options(small)


@pytest.fixture(scope="module")
def run(study, tmp_path_factory):
    """Output folder of a study with one row that cannot be trained, and what was said to have failed."""
    output = tmp_path_factory.mktemp("ablations")
    return output, run_study(study, list(study.rows.values()), [0], output, 2)


def test_a_row_is_trained_from_its_start_and_evaluated(study, run):
    folder = run[0] / "runs" / "good" / "seed0"
    result = json.loads((folder / "result.json").read_text())
    assert (result["row"], result["seed"], result["digest"]) == ("good", 0, study.digest(study.rows["good"]))
    assert {"bbox/AP", "segm/AP", "segm/AP75", "boundary/AP"} <= set(result["metrics"])
    assert result["parameters"]["all"] > result["parameters"]["mask"] > 0
    assert result["train_ms"] > 0 and result["inference_ms"] > 0
    assert not list(folder.glob("*.pth")), "checkpoints are left behind"
    log = (folder / "log.txt").read_text()
    (start,) = (run[0] / "starts").glob("*/start.pth")
    assert f"Loading from {start}" in log
    kept = torch.load(start)["model"]
    assert {name.split(".")[0] for name in kept} == {"backbone", "proposal_generator"}


def test_a_row_that_fails_is_told_and_does_not_stop_the_others(run):
    (failed,) = run[1]
    name, log = failed.split(": ")
    assert name == "broken seed 0"
    assert "'NoSuchMaskHead' is not in detectron2's ROI_MASK_HEAD registry" in Path(log).read_text()


def test_report_of_what_is_there(study, run):
    text = write_report(study, run[0], [0])
    assert "1 runs of 1 rows" in text and "| broken | – |" in text
    assert (run[0] / "report.md").is_file() and (run[0] / "report.png").is_file()


def test_finished_rows_are_skipped_and_interrupted_ones_start_over(study, run):
    good = [study.rows["good"]]
    finished = run[0] / "runs" / "good" / "seed0" / "result.json"
    interrupted = run[0] / "runs" / "good" / "seed1"
    interrupted.mkdir()
    (interrupted / "metrics.json").write_text('{"iteration": 1}\nhalf a li')
    before = finished.stat().st_mtime_ns
    starts = [path.stat().st_mtime_ns for path in run[0].glob("starts/*/start.pth")]
    assert run_study(study, good, [0, 1], run[0], 1) == []
    assert finished.stat().st_mtime_ns == before
    assert [path.stat().st_mtime_ns for path in run[0].glob("starts/*/start.pth")] == starts
    assert (interrupted / "result.json").is_file()
    assert "half a li" not in (interrupted / "metrics.json").read_text()
