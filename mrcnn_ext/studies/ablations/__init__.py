"""The ablations of the Mask R-CNN paper, in small, on the synthetic scenes."""

from .cli import main
from .report import write_report
from .runner import run_study
from .study import load_study

__all__ = ["load_study", "main", "run_study", "write_report"]
