"""The study of recipes: what it trains, what it keeps, its table."""

import json
from pathlib import Path

import cv2
import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.studies import recipe
from mrcnn_ext.studies.recipe import run_study, study_table

pytestmark = pytest.mark.detectron2


@pytest.fixture(autouse=True)
def catalog():
    yield
    for split in ("train", "val"):
        if (name := f"recipe_study_elongated_{split}") in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_scenes_cut_short_are_drawn_again(tmp_path, monkeypatch):
    root, imwrite = tmp_path / "elongated" / "scenes", cv2.imwrite

    def interrupted(path, *args):
        if "val" in Path(path).parts and "drawn." not in path:
            raise KeyboardInterrupt
        return imwrite(path, *args)

    monkeypatch.setattr(recipe.cv2, "imwrite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recipe._write_scenes(root, "elongated", 2, 1)
    monkeypatch.undo()
    recipe._write_scenes(root, "elongated", 2, 1)
    assert {path.name for path in (root / "annotations").iterdir()} == {
        "instances_train.json",
        "instances_val.json",
    }
    changed = [path.stat().st_mtime_ns for path in root.rglob("*.png")]
    assert len(changed) == 3
    recipe._write_scenes(root, "elongated", 2, 1)
    assert [path.stat().st_mtime_ns for path in root.rglob("*.png")] == changed


def test_it_trains_both_ways_once(tmp_path):
    options = {"iterations": 5, "num_train": 24, "num_val": 2, "seed": 0}
    results = run_study(tmp_path, ["elongated"], ["config", "recipe"], **options)["elongated"]
    assert results["recipe"]["fit"] > results["config"]["fit"] + 0.05
    assert any("SOLVER.MAX_ITER 5: as you have set it" in line for line in results["recipe"]["choices"])
    assert (tmp_path / "elongated" / "recipe" / "recipe.yaml").is_file()
    kept = tmp_path / "elongated" / "config" / "result_0.json"
    assert json.loads(kept.read_text())["arguments"] == {"iterations": 5, "num_train": 24, "num_val": 2}
    kept.write_text(json.dumps({**results["config"], "AP": 12.3, "AP50": 45.6}))
    table = study_table(run_study(tmp_path, ["elongated"], ["config", "recipe"], **options))
    assert "| elongated objects | config |" in table and "| 12.3 | 45.6 |" in table
