#!/usr/bin/env python
"""Train a small network with a config as it is and with --recipe auto, on three datasets of scenes; ten minutes on a
core. What is in the output folder already, made with the same arguments, is not trained again."""

import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.studies.arguments import study_parser
from mrcnn_ext.studies.recipe import DATASETS, WAYS, run_study, study_table

if __name__ == "__main__":
    parser = study_parser(__doc__, "output/recipe", iterations=200, num_train=100, num_val=40)
    data = {"dest": "names", "choices": list(DATASETS), "default": list(DATASETS)}
    parser.add_argument("--data", nargs="+", help="to train on now", **data)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to train now")
    print(study_table(run_study(**vars(parser.parse_args()))))
