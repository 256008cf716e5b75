"""What a config says to calibrate int8 with."""

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.data import DatasetCatalog

from .errors import UserError

__all__ = ["INT8_KEY", "check_int8", "int8_from_config"]

INT8_KEY = "MODEL.ACCELERATE_INT8 (train.accelerate_int8)"
_BATCHES = 16


def int8_from_config(value: str, make_loader: Callable[[str], Iterable]):
    """The argument ``int8`` of `mrcnn_ext.accelerate` that a config asks for.

    Args:
        value: "" for none, the path of a saved calibration, or the name of a dataset, on whose first 16 batches to
            calibrate.
        make_loader: the test loader of a dataset.

    Raises:
        UserError: ``value`` is neither a file nor a dataset.
    """
    check_int8(value)
    if not value:
        return None
    if Path(value).is_file():
        return value
    return list(itertools.islice(make_loader(value), _BATCHES))


def check_int8(value: str, training: bool = False) -> None:
    """
    Args:
        value: as of `int8_from_config`.
        training: it is for the evaluations of a training.

    Raises:
        UserError: ``value`` is neither a file nor a dataset; or a file, which a training's weights do not have yet.
    """
    if value and Path(value).is_file():
        if training:
            raise UserError(
                f"{INT8_KEY}: the calibration {value} is for the weights that it was made with, and a training makes "
                "others: name a registered dataset to calibrate with"
            )
    elif value and value not in DatasetCatalog.list():
        raise UserError(
            f"{INT8_KEY}: {value!r} is neither the file of a calibration nor a registered dataset"
        )
