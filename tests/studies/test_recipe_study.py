"""The study of recipes: what it trains, what it keeps, its table."""

import json

import pytest

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog

from mrcnn_ext.studies.recipe import run_study, study_table

pytestmark = pytest.mark.detectron2


@pytest.fixture(autouse=True)
def catalog():
    yield
    for split in ("train", "val"):
        DatasetCatalog.remove(f"recipe_study_elongated_{split}")
        MetadataCatalog.remove(f"recipe_study_elongated_{split}")


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
