#!/usr/bin/env python
"""`mrcnn-ext benchmark masks`. ``--help`` lists the options."""

import sys
from pathlib import Path

try:
    import mrcnn_ext_command
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import mrcnn_ext_command

if __name__ == "__main__":
    mrcnn_ext_command.main(["benchmark", "masks", *sys.argv[1:]])
