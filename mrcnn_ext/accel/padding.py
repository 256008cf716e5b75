"""Inference whose results have places for more than is found, so that the host asks the device once, in the end."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from ..layers.padded_detections import is_padding
from .cuda_graphs import GraphedCalls

__all__ = ["PaddedResults", "padded_results", "run_padded", "run_part_as_graph"]

_CURRENT: ContextVar["PaddedResults | None"] = ContextVar("mrcnn_ext_padded_results", default=None)
_Result = TypeVar("_Result")


class _NotExactError(Exception):
    """What was computed are not the detector's results: it has to go the other way."""


class PaddedResults:
    """One run of a detector between whose steps proposals and detections may be padding; `is_padding` of their scores
    tells which.

    Attributes:
        proposals: (N, P) bool, which proposals there are, where nothing else tells; None else.
    """

    def __init__(self):
        self.proposals: Tensor | None = None
        self._exact: list[Tensor] = []

    def expect(self, exact: Tensor) -> None:
        """The results are the detector's only if ``exact``, () bool, is true."""
        self._exact.append(exact)

    def found(self, present: list[Tensor]) -> list[slice | list[int]]:
        """Asks the device, once for all images, which instances there are.

        Args:
            present: of each image (D,) bool.

        Returns:
            What to index each image's instances with: a slice if the first ones are there and no others.
        """
        exact = [] if not self._exact else [torch.stack(self._exact).all()[None]]
        answer = torch.cat([*present, *exact]).tolist()
        if exact and not answer.pop():
            raise _NotExactError
        places, begin = [], 0
        for image in present:
            index = [place for place, there in enumerate(answer[begin : begin + len(image)]) if there]
            begin += len(image)
            first = index == list(range(len(index)))
            places.append(slice(len(index)) if first else index)
        return places

    def found_by_scores(self, scores: list[Tensor]) -> list[slice | list[int]]:
        """As `found` of those whose scores (D,) are not padding's."""
        return self.found([~is_padding(image) for image in scores])


def padded_results() -> PaddedResults | None:
    """The run that this is a part of; None if results must not be padded here."""
    return _CURRENT.get()


def run_padded(run: Callable[[], _Result]) -> _Result:
    """Calls ``run`` with `padded_results`, and once more without if its results turn out not to be exact.

    Args:
        run: a detector; it asks `PaddedResults.found` before it returns.
    """
    with contextlib.suppress(_NotExactError), _padding(PaddedResults()):
        return run()
    with _padding(None):
        return run()


def run_part_as_graph(graphs: GraphedCalls, run: Callable, tensors, constants: Hashable):
    """``run(tensors)``, a part of a padded run, as a CUDA graph where it can be; arguments as of `GraphedCalls`."""

    def with_conditions(tensors):
        # Of its own: a replay calls nothing, so what has to be true is a result too.
        results = PaddedResults()
        with _padding(results):
            return run(tensors), list(results._exact)

    whole = padded_results()
    assert whole is not None
    result, exact = graphs(with_conditions, tensors, constants)
    for condition in exact:
        whole.expect(condition)
    return result


@contextlib.contextmanager
def _padding(results: PaddedResults | None) -> Iterator[None]:
    token = _CURRENT.set(results)
    try:
        yield
    finally:
        _CURRENT.reset(token)
