#!/usr/bin/env python
"""Train or evaluate the model of a LazyConfig (.py). ``--help`` gives examples."""

import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.engine import argument_parser, run_tool
from mrcnn_ext.engine.lazy import main

if __name__ == "__main__":
    run_tool(main, argument_parser())
