"""Python programs with operators and layers by themselves: the package's __init__ would import detectron2, which takes
seconds."""

import os
import subprocess
import sys
from pathlib import Path

import mrcnn_ext

_ALONE = f"""
import sys, types
sys.modules["mrcnn_ext"] = types.ModuleType("mrcnn_ext")
sys.modules["mrcnn_ext"].__path__ = [{str(Path(mrcnn_ext.__file__).parent)!r}]
"""


def run_alone(code, **environment):
    """Runs a program, which may import the modules of this folder, with further variables in its environment."""
    return subprocess.run(
        [sys.executable, "-c", _ALONE + code],
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
