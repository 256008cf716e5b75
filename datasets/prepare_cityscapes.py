#!/usr/bin/env python
"""Unpack, verify and check Cityscapes: `mrcnn-ext datasets prepare cityscapes`. ``--help`` gives examples."""

import sys
from pathlib import Path

try:
    import mrcnn_ext_command
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import mrcnn_ext_command

if __name__ == "__main__":
    mrcnn_ext_command.main(["datasets", "prepare", "cityscapes", *sys.argv[1:]])
