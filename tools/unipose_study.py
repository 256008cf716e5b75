#!/usr/bin/env python
"""Train UniPose on crops of people and the RoI keypoint head on whole scenes, and lay their keypoints side by side on
the same people, whose boxes are given. What is in the output folder already, made with the same arguments, is not
trained again."""

import sys
from pathlib import Path

try:
    import mrcnn_ext  # noqa: F401
except ModuleNotFoundError:
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mrcnn_ext.studies.arguments import study_parser
from mrcnn_ext.studies.unipose import HEADS, run_study, study_table

if __name__ == "__main__":
    parser = study_parser(__doc__, "output/unipose", iterations=500, num_train=400, num_val=80)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="to train now")
    print(study_table(run_study(**vars(parser.parse_args()))))
