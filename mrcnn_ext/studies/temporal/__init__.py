"""What a state over the frames of a video is worth to a keypoint head: one frozen detector, one budget, some seeds."""

from .report import history_table, plot_history, study_table
from .study import HEADS, StudySize, run_study

__all__ = ["HEADS", "StudySize", "history_table", "plot_history", "run_study", "study_table"]
