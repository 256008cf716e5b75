"""Training programs over detectron2's: trainer, hooks, checkpoints, launching."""

from .checkpoint import Checkpointer
from .checks import check_config, check_lazy_config
from .errors import UserError
from .events import ProgressPrinter, build_writers
from .hooks import ValidationLossHook, compute_losses
from .launch import argument_parser, launch, run_tool
from .predictor import Predictor
from .setup import load_config, setup
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "Predictor",
    "ProgressPrinter",
    "Trainer",
    "UserError",
    "ValidationLossHook",
    "argument_parser",
    "build_writers",
    "check_config",
    "check_lazy_config",
    "compute_losses",
    "launch",
    "load_config",
    "run_tool",
    "setup",
]
