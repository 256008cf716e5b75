"""Reports of evaluations: one HTML file with curves, errors and pictures. Runs without detectron2.

What is shown is computed by plain functions (`matching`, `scores`, `precision`, `keypoints`, `history`); `figures`,
`pictures` and `page` draw it.
"""

from .history import TrainingHistory
from .keypoints import KeypointError, keypoint_errors
from .matching import FalseAlarm, Matches, Miss, match_detections
from .precision import TaskResult, evaluate_tasks
from .report import report_of_files, write_report
from .scores import Reliability, reliability, threshold_curves

__all__ = [
    "FalseAlarm",
    "KeypointError",
    "Matches",
    "Miss",
    "Reliability",
    "TaskResult",
    "TrainingHistory",
    "evaluate_tasks",
    "keypoint_errors",
    "match_detections",
    "reliability",
    "report_of_files",
    "threshold_curves",
    "write_report",
]
