"""The tutorials, as a reader follows them: each page's blocks are run in order, in an empty folder.

A block with a title is written to that file; Python without one is run, and so is each line of shell. Comments before a
block change that:

* ``<!-- not run: why -->`` leaves it out;
* ``<!-- run with: 300=2; 480, 640=96, 128 -->`` puts small numbers in the place of the page's.
"""

import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

pytestmark = pytest.mark.detectron2

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md")) + [
    ROOT / "docs" / name for name in ("watching.md", "weights.md", "video.md")
]
NOTEBOOK = ROOT / "docs" / "look-at-a-model.ipynb"
_BLOCK = re.compile(
    r"(?:<!-- (?P<how>not run|run with): (?P<what>.*?) -->\n+)?"
    r"```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^```",
    re.DOTALL | re.MULTILINE,
)
# What a page promises to be there afterwards.
MADE = {
    "own-data": [
        "drawn",
        "output/street/report_street_val.html",
        "output/street/model_final.pth",
        "found.json",
        "found",
    ],
    "custom-keypoints": ["output/arrows/report_arrows_val.html"],
    "deploy": ["model.ts"],
    "video": ["output/clips/model_final.pth", "keypoints.onnx"],
    "watching": ["report.html"],
}
_RUN = ("python", "sh", "yaml", "json")


def blocks(page):
    """(language, title, text) of the blocks that are to be run or written."""
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        if match["how"] == "not run" or match["language"] not in _RUN:
            continue
        text = match["text"]
        for pair in match["what"].split("; ") if match["how"] == "run with" else ():
            old, new = pair.split("=")
            assert old in text, f"{page.name}: {old!r} is to be replaced in a block that does not have it"
            text = text.replace(old, new)
        title = re.search(r'title="([^"]+)"', match["options"])
        yield match["language"], title[1] if title else None, text


def run_command(line, monkeypatch):
    """A line of shell, in this process."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    program, *arguments = words
    if program == "mrcnn-ext":
        program, arguments = "python", ["-m", "mrcnn_ext", *arguments]
    assert program == "python", f"do not know how to run {line!r}"
    is_module = arguments[0] == "-m"
    name, *arguments = arguments[is_module:]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=False) if is_module else runpy.run_path(
            name, run_name="__main__"
        )
    except SystemExit as end:
        assert not end.code, f"{line} ended with {end.code}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)
    for name, module in list(sys.modules.items()):
        if str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works_as_it_is_written(page, folder, monkeypatch):
    names = {"__name__": "tutorial"}
    count = 0
    for language, title, text in blocks(page):
        count += 1
        if title:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif language == "python":
            exec(compile(text, f"{page.name}, block {count}", "exec"), names)
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line, monkeypatch)
    assert count, f"{page.name} has no block that is run"
    for path in MADE.get(page.stem, ()):
        assert (folder / path).exists(), path


def test_the_notebook_runs_and_holds_no_outputs(folder, monkeypatch):
    import matplotlib

    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)
    monkeypatch.setenv("MRCNN_EXT_NOTEBOOK_ITERATIONS", "2")
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    shown = []

    def show():
        shown.append(len(plt.gcf().axes))
        plt.close("all")

    monkeypatch.setattr(plt, "show", show)
    names = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert shown == [4, 1]  # predictions of four scenes, and the curves of two RoI layers
