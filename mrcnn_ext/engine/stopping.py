"""Trainings that end before their time, by an error that a person can put right or because it is enough."""

import contextlib

from ..files import DiskFullError
from .errors import NonFiniteError, UserError

__all__ = ["StopTraining", "Stoppable"]


class StopTraining(BaseException):
    """Ends the loop of a `Stoppable` trainer; hooks' ``after_train`` are called.

    Args:
        error: what ``train`` is to raise; None for an end in order.
    """

    def __init__(self, error=None):
        super().__init__(error)
        self.error = error


class Stoppable:
    """Mixed into a detectron2 trainer: errors whose message says all reach the caller of ``train`` without the
    traceback that detectron2 logs for them."""

    def before_train(self):
        with _stopping():
            super().before_train()

    def run_step(self):
        with _stopping():
            super().run_step()

    def after_step(self):
        with _stopping():
            super().after_step()

    def train(self, *args, **kwargs):
        try:
            return super().train(*args, **kwargs)
        except StopTraining as stop:
            error = stop.error
        if error is not None:
            raise error


@contextlib.contextmanager
def _stopping():
    try:
        yield
    except (UserError, NonFiniteError, DiskFullError) as error:
        raise StopTraining(error) from error
