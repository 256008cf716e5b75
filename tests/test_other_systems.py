"""What only some systems have is not needed."""

import os
import subprocess
import sys

import pytest

# Windows has neither; macOS lacks what of theirs is Linux's.
IMPORTS = """
import importlib, importlib.util, pkgutil, signal, sys, torch
if importlib.util.find_spec("detectron2"):  # what it is made of takes them where the system is Linux
    import detectron2.data.datasets, detectron2.engine, detectron2.evaluation
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
    delattr(signal, name)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import mrcnn_ext
failed = []
for package in {packages!r}:
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            if error.name in ("fcntl", "resource", "pwd", "grp", "termios"):
                failed.append((module.name, error.name))
assert not failed, failed
from mrcnn_ext.layers import roi_align
assert roi_align(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).eq(1).all()
print("imported")
"""
ALONE = ("mrcnn_ext.ops", "mrcnn_ext.layers", "mrcnn_ext.accel", "mrcnn_ext.scenes")
DETECTRON2 = ("mrcnn_ext.data", "mrcnn_ext.engine", "mrcnn_ext.inference", "mrcnn_ext.export")


@pytest.mark.parametrize("packages", [ALONE, pytest.param(DETECTRON2, marks=pytest.mark.detectron2)])
def test_the_package_imports_and_pools_where_unix_modules_are_missing(packages):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.format(packages=packages)],
        capture_output=True,
        text=True,
        env={**os.environ, "MRCNN_EXT_BACKEND": "eager"},
    )
    assert done.returncode == 0 and done.stdout.strip().endswith("imported"), done.stderr[-3000:]


@pytest.mark.detectron2
def test_memory_is_not_told_without_the_module_that_knows_it(monkeypatch):
    from mrcnn_ext.engine import events

    monkeypatch.setattr(events, "resource", None)
    assert events.peak_memory() is None or events.torch.cuda.is_initialized()
