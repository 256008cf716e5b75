"""The command as it is started from a shell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def start(*arguments, code=0, **environment):
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**ENVIRONMENT, **environment})
    assert done.returncode == code, done.stderr
    return done


def test_help_and_completion_of_commands_import_neither_torch_nor_detectron2():
    script = """
import sys
from click.testing import CliRunner
from mrcnn_ext_command import COMMANDS, command
printed = CliRunner().invoke(command, ["--help"]).output
assert all(name in printed for name in COMMANDS), printed
assert CliRunner().invoke(command, ["trian"]).exit_code == 2
assert not {"torch", "detectron2", "mrcnn_ext", "numpy"} & set(sys.modules), sorted(sys.modules)
"""
    start("-c", script)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell):
    run = "from mrcnn_ext_command import main; main()"
    if shell == "bash":
        version = subprocess.run(["bash", "--version"], capture_output=True, text=True).stdout
        if " version 4.4" not in version and " version 5" not in version:
            pytest.skip("click's completion needs bash 4.4")
    script = start("-c", run, _MRCNN_EXT_COMPLETE=f"{shell}_source").stdout
    assert "_MRCNN_EXT_COMPLETE" in script and "mrcnn-ext" in script


def test_completion_of_commands():
    run = "import sys; from mrcnn_ext_command import main; main()"
    words = {"COMP_WORDS": "mrcnn-ext ", "COMP_CWORD": "1"}
    completed = start("-c", run, _MRCNN_EXT_COMPLETE="bash_complete", **words).stdout
    assert {"plain,train", "plain,eval", "plain,zoo"} <= set(completed.split())


def test_exit_codes_of_the_program():
    pytest.importorskip("detectron2")
    done = start("-m", "mrcnn_ext", "zoo", "show", "mask_rcnn_R50_FPN", code=2)
    assert done.stderr.splitlines()[-1].startswith("error: there is no file and no model 'mask_rcnn_R50_FPN'")
    assert "Traceback" not in done.stderr


def test_every_tool_prints_its_help():
    pytest.importorskip("detectron2")
    script = """
import contextlib, io, runpy, sys
from pathlib import Path
for path in sorted(Path("tools").glob("*.py")):
    sys.argv, printed = [str(path), "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        assert not end.code, (path, end.code)
    assert "usage" in printed.getvalue().lower(), path
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
