#!/usr/bin/env python
"""What each step from R-CNN to Mask R-CNN buys, on synthetic scenes. ``--help`` lists the options."""

import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.studies.lineage.cli import main

if __name__ == "__main__":
    sys.exit(main())
