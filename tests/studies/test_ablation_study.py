"""configs/ablations: every row's config, and what a study makes of its file."""

import dataclasses

import pytest
import yaml

pytest.importorskip("detectron2")

from detectron2.modeling import build_model

from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.studies.ablations import load_study

pytestmark = pytest.mark.detectron2

STUDY = load_study()


def values(cfg, prefix=""):
    """Every key with its value, {"MODEL.DEVICE": "cpu", ...}."""
    found = {}
    for key, value in cfg.items():
        found |= values(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def config(row):
    return load_config(str(row.base), [part for pair in row.options.items() for part in pair])


@pytest.mark.parametrize("name", STUDY.rows)
def test_a_row_differs_from_its_base_in_the_named_lines_only(name):
    row = STUDY.rows[name]
    cfg = config(row)
    ours, base = values(cfg), values(load_config(str(row.base)))
    differing = {key for key in base if ours[key] != base[key]}
    assert differing == set(row.options), "a named line that changes nothing, or a change that is not named"
    assert not any(key.startswith(("SOLVER.", "DATASETS.", "INPUT.", "TEST.", "SEED")) for key in differing)
    build_model(cfg)


def test_rows_start_from_their_own_backbone():
    for row in STUDY.rows.values():
        model, start = config(row).MODEL, config(STUDY.starts[row.start]).MODEL
        for key in ("BACKBONE.NAME", "TIMM", "FPN", "ANCHOR_GENERATOR", "RPN.IN_FEATURES"):
            ours, theirs = model, start
            for part in key.split("."):
                ours, theirs = ours[part], theirs[part]
            assert ours == theirs, key


def test_every_row_is_in_a_table():
    listed = {entry.row for table in STUDY.tables.values() for entry in table.entries}
    assert listed == set(STUDY.rows)
    assert STUDY.select([]) == list(STUDY.rows.values())


def test_selection_by_table_and_row():
    names = [row.name for row in STUDY.select(["roi_layer_stride32", "stride16_pool", "stride32_pool"])]
    assert sorted(names) == ["stride16_pool", "stride32_align", "stride32_pool"]
    with pytest.raises(ValueError, match="no table or row 'stride8'; there are roi_layer_stride16, "):
        STUDY.select(["stride8"])


def test_digest_changes_with_all_that_results_depend_on():
    row = STUDY.rows["stride16_pool"]
    start = dataclasses.replace(STUDY.starts["stride16"], options={"SOLVER.MAX_ITER": 7})
    digests = [
        STUDY.digest(row),
        STUDY.digest(dataclasses.replace(row, options={})),
        STUDY.digest(dataclasses.replace(row, base=STUDY.rows["stride32_pool"].base)),
        dataclasses.replace(STUDY, starts={"stride16": start}).digest(row),
        dataclasses.replace(STUDY, scenes={**STUDY.scenes, "seed": 5}).digest(row),
        STUDY.with_options({"SOLVER.MAX_ITER": 3}).digest(row),
    ]
    assert len(set(digests)) == len(digests)
    assert STUDY.digest(row) == load_study().digest(row)


SMALL = {
    "scenes": {"preset": "easy", "num_train": 4, "num_val": 2, "seed": 0},
    "starts": {"only": {"base": "base.yaml"}},
    "rows": [{"base": "base.yaml", "start": "only", "rows": {"a": {}, "b": {}}}],
    "tables": {
        "t": {
            "title": "T",
            "metrics": ["segm/AP"],
            "rows": {"a": {"label": "A", "paper": [30.0]}, "b": {"label": "B"}},
            "expect": [["a", "b", "segm/AP"]],
        }
    },
}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["rows"][0].update(start="other"), "rows of base.yaml start from 'other', not in starts"),
        (lambda s: s["rows"][0]["rows"].pop("b"), "t: there is no row 'b'"),
        (
            lambda s: s["tables"]["t"]["metrics"].append("segm/AP50"),
            "t, a: 1 figures of the paper for 2 metrics",
        ),
        (
            lambda s: s["tables"]["t"]["expect"].append(["a", "b", "bbox/AP"]),
            "t: expect names a row or metric",
        ),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, change, message):
    content = yaml.safe_load(yaml.safe_dump(SMALL))
    file = tmp_path / "rows.yaml"
    file.write_text(yaml.safe_dump(content))
    assert list(load_study(file).rows) == ["a", "b"]
    change(content)
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=message):
        load_study(file)
