#!/usr/bin/env python
"""Report what is in a dataset and what is wrong with it, draw it, mend it. ``--help`` gives examples."""

import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.data.cli import REFUSED, check_main

if __name__ == "__main__":
    try:
        sys.exit(check_main())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
