"""Results of studies that are made once."""

import argparse
import json
import runpy
import sys
from pathlib import Path

import pytest

from mrcnn_ext.studies.arguments import study_parser
from mrcnn_ext.studies.kept import kept_file, kept_result

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def test_a_result_is_kept_with_its_arguments(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"AP": len(made)}

    path = tmp_path / "head" / "result.json"
    assert kept_result(path, {"iterations": 5}, make) == {"AP": 1, "arguments": {"iterations": 5}}
    assert kept_result(path, {"iterations": 5}, make)["AP"] == 1
    assert kept_result(path, {"iterations": 6}, make)["AP"] == 2, "another training's result was given"
    path.write_text(json.dumps({"AP": 7}))
    assert kept_result(path, {"iterations": 6}, make)["AP"] == 3, "nobody knows what it was made with"
    assert [file.name for file in path.parent.iterdir()] == ["result.json"]


def test_a_file_is_kept_with_its_arguments(tmp_path):
    made = []

    def make(file):
        made.append(1)
        file.write(b"%d" % len(made))

    path, record = tmp_path / "study" / "weights.pth", tmp_path / "study" / "weights.pth.json"
    for arguments, content in (({"seed": 5}, b"1"), ({"seed": 5}, b"1"), ({"seed": 6}, b"2")):
        kept_file(path, arguments, make)
        assert path.read_bytes() == content
    record.unlink()
    kept_file(path, {"seed": 6}, make)
    assert path.read_bytes() == b"3", "nobody knows what it was made with"
    path.unlink()
    kept_file(path, {"seed": 6}, make)
    assert path.read_bytes() == b"4"

    def fail(file):
        file.write(b"half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        kept_file(path, {"seed": 7}, fail)
    assert path.read_bytes() == b"4" and not record.is_file(), "a half file is in its place"
    assert [file.name for file in path.parent.iterdir()] == ["weights.pth"]
    kept_file(path, {"seed": 6}, make)
    assert path.read_bytes() == b"5"


def test_the_words_of_a_study():
    parser = study_parser("A study.", "output/some", iterations=5, num_train=4, num_val=3)
    sizes = {"iterations": 5, "num_train": 4, "num_val": 3, "seed": 0}
    assert vars(parser.parse_args([])) == {"output": Path("output/some"), **sizes}
    assert parser.parse_args(["--num-val", "9"]).num_val == 9


@pytest.mark.parametrize("name", ["unipose", "recipe"])
def test_the_tools_pass_on_what_they_are_given(name, monkeypatch, capsys):
    pytest.importorskip("detectron2")
    study = __import__(f"mrcnn_ext.studies.{name}", fromlist=["run_study"])
    given = []

    def run(output, *args, iterations, num_train, num_val, seed, **kwargs):
        given.append(argparse.Namespace(output=output, iterations=iterations, **kwargs))
        return {}

    monkeypatch.setattr(study, "run_study", run)
    monkeypatch.setattr(sys, "argv", ["tool", "--output", "out", "--iterations", "3"])
    runpy.run_path(str(TOOLS / f"{name}_study.py"), run_name="__main__")
    assert given[0].output == Path("out") and given[0].iterations == 3
    choices = (given[0].heads,) if name == "unipose" else (given[0].names, given[0].ways)
    assert all(len(choice) > 1 for choice in choices) and "| --- |" in capsys.readouterr().out
