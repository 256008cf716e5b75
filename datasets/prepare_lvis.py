#!/usr/bin/env python
"""Unpack, verify and check LVIS: `mrcnn-ext datasets prepare lvis`. ``--help`` gives examples."""

import sys
from pathlib import Path

try:
    import mrcnn_ext_command
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import mrcnn_ext_command

if __name__ == "__main__":
    mrcnn_ext_command.main(["datasets", "prepare", "lvis", *sys.argv[1:]])
