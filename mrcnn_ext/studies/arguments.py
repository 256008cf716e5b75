"""The command line of studies that train on scenes drawn for them."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["study_parser"]


def study_parser(
    description: str | None, output: str, *, iterations: int, num_train: int, num_val: int
) -> argparse.ArgumentParser:
    """A parser with --output, --iterations, --num-train, --num-val and --seed.

    Args:
        description: of the study.
        output: the default of --output.
        iterations, num_train, num_val: defaults.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(output), help="folder for the results")
    parser.add_argument("--iterations", type=int, default=iterations, help="of each training")
    parser.add_argument("--num-train", type=int, default=num_train, help="scenes to train on")
    parser.add_argument("--num-val", type=int, default=num_val, help="scenes to evaluate on")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    return parser
