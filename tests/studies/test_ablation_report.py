"""The report of made-up results: means, spreads, directions."""

import math

import pytest

pytest.importorskip("detectron2")

from mrcnn_ext.studies.ablations.report import Verdict, collect, compare, markdown, plot
from mrcnn_ext.studies.ablations.study import Comparison, Entry, Row, Study, Table

pytestmark = pytest.mark.detectron2

TABLE = Table(
    "layers",
    "RoI layer",
    "table 2c",
    ("segm/AP", "segm/AP75"),
    (
        Entry("pool", "RoIPool", (26.9, 26.4)),
        Entry("align", "RoIAlign", (30.3, 31.5)),
        Entry("new", "New", (None,) * 2),
    ),
    (
        Comparison("align", "pool", "segm/AP75"),
        Comparison("align", "pool", "segm/AP"),
        Comparison("new", "align", "segm/AP"),
    ),
    "mask",
)
STUDY = Study(
    {"num_train": 4, "num_val": 2},
    {},
    {name: Row(name, None, {}) for name in ("pool", "align", "new")},
    {"layers": TABLE},
)


def result(ap, ap75):
    return {
        "metrics": {"segm/AP": ap, "segm/AP75": ap75},
        "parameters": {"all": 5000, "mask": 2000},
        "train_ms": 100.0,
        "inference_ms": 40.0,
    }


RESULTS = {
    # Means 20 and 10, deviations 1 and 2.
    "pool": {0: result(19, 8), 1: result(20, 10), 2: result(21, 12)},
    # Means 19.5 and 16, deviations 1.5 and 2.
    "align": {0: result(18, 14), 1: result(19.5, 16), 2: result(21, 18)},
    "new": {1: result(25, 20)},
}


def verdict(index, results=RESULTS):
    return compare(TABLE, TABLE.comparisons[index], results)


def test_margin_above_the_spread_in_the_papers_direction():
    found = verdict(0)
    assert (found.margin, found.wins, found.pairs) == (6, 3, 3)
    assert found.spread == pytest.approx(math.sqrt(2**2 + 2**2))
    assert found.paper == pytest.approx(5.1)
    assert str(found) == (
        "**+6.0** (paper +5.1): the paper's direction, ahead in 3 of 3 seeds; above the seed spread of 2.8"
    )


def test_rows_that_go_the_other_way_are_told():
    found = verdict(1)
    assert found.margin == -0.5 and found.wins == 0
    assert "**-0.5** (paper +3.4): THE OTHER WAY than the paper, ahead in 0 of 3 seeds" in str(found)
    assert "WITHIN the seed spread of 1.8" in str(found)


def test_one_seed_has_no_spread_and_ours_no_paper():
    found = verdict(2)
    assert (found.margin, found.pairs, found.paper) == (5.5, 1, None)
    assert str(found) == "**+5.5**: as expected, ahead in 1 of 1 seeds; one seed, no spread"


def test_unfinished_rows():
    assert verdict(0, {**RESULTS, "pool": {}}) is None
    found = verdict(0, {**RESULTS, "pool": {5: result(20, 10)}})
    assert isinstance(found, Verdict) and found.pairs == 0
    text = markdown(STUDY, {**RESULTS, "pool": {}})
    assert "| RoIPool | – [26.9] | – [26.4] | – | – | – | – |" in text
    assert "over RoIPool" not in text
    assert "RoI layer" not in markdown(STUDY, {name: {} for name in RESULTS})


def test_table_lays_each_row_beside_the_paper():
    text = markdown(STUDY, RESULTS)
    assert "7 runs of 3 rows" in text
    assert "Of 3 comparisons 2 go the expected way, 1 of them by more than the seed spread." in text
    row = (
        "| RoIAlign | 19.5 ± 1.5 [30.3] | 16.0 ± 2.0 [31.5] | 2k | 100 ms/iteration | 40 ms/image | 0, 1, 2 |"
    )
    assert row in text
    assert "| New | 25.0 | 20.0 | 2k |" in text
    assert "- RoIAlign over RoIPool, mask AP75: **+6.0**" in text


def test_picture(tmp_path):
    for results in (RESULTS, {name: {} for name in RESULTS}):
        plot(STUDY, results, tmp_path / "report.png")
        assert (tmp_path / "report.png").stat().st_size > 1000


def test_results_of_another_config_do_not_count(tmp_path, monkeypatch):
    import json

    monkeypatch.setattr(Study, "digest", lambda self, row: "now")
    for seed, digest in ((0, "now"), (1, "before")):
        folder = tmp_path / "runs" / "pool" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({**result(20, 10), "digest": digest}))
    assert list(collect(STUDY, tmp_path, [0, 1, 2])["pool"]) == [0]
