#!/usr/bin/env python
"""The paper's ablations on synthetic scenes. ``--help`` lists the options."""

import sys

from mrcnn_ext.studies.ablations import main

if __name__ == "__main__":
    sys.exit(main())
