"""What a state over the frames of a video is worth to a keypoint head: one frozen detector, one budget, some seeds."""

from .study import HEADS, StudySize, run_study

__all__ = ["HEADS", "StudySize", "run_study"]
