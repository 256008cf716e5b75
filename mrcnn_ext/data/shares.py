"""A dataset checked by all processes of a training: each looks at its share, and all know what all have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from detectron2.utils import comm

from .problems import Problems

__all__ = ["Shares"]

T = TypeVar("T")


class Shares:
    """The processes that check a dataset together.

    What they find is put together in the order of the records, so that it is what one process would have found. Every
    process must call the same methods in the same order.

    Args:
        sharded: whether all processes of detectron2's launcher (or another's process group) take part. Otherwise this
            one is alone, whatever the others do.
    """

    def __init__(self, sharded: bool):
        self._number: int = comm.get_world_size() if sharded else 1
        self._rank: int = comm.get_rank() if sharded else 0

    def read(self, read: Callable[[], Sequence[dict]], problems: Problems) -> Sequence[dict]:
        """What ``read`` returns. All processes read, as a training needs all of a dataset in each of them.

        Args:
            read: reads the dataset, and takes what is wrong with it to ``problems``.
            problems: has the findings of the first process afterwards.

        Raises:
            FileNotFoundError, ValueError: ``read`` has raised it in some process, the first of which gives the message.
            ValueError: the processes have read different numbers of images.
        """
        if self._number == 1:
            return read()
        records: Sequence[dict] = ()
        failure = None
        try:
            records = read()
        except (FileNotFoundError, ValueError) as error:
            failure = isinstance(error, FileNotFoundError), str(error)
        everybodys = comm.all_gather((len(records), problems.findings, failure))
        for _, _, found in everybodys:
            if found is not None:
                is_missing, message = found
                raise (FileNotFoundError if is_missing else ValueError)(message)
        counts = [count for count, _, _ in everybodys]
        if len(set(counts)) > 1:
            other = next(rank for rank, count in enumerate(counts) if count != counts[0])
            raise ValueError(
                f"dataset {problems.dataset!r} has {counts[0]} images in process 0 and {counts[other]} in process "
                f"{other}: all machines must have the same data"
            )
        problems.findings = everybodys[0][1]
        return records

    def check(
        self, look: Callable[[Sequence[dict], Problems], T], records: Sequence[dict], problems: Problems
    ) -> list[T]:
        """Looks at the records, each in one of the processes.

        Args:
            look: is given a share of the records, and takes what is wrong with them to the problems that it is given.
            records: of `read`.
            problems: takes what all have found.

        Returns:
            What ``look`` returned for each share, in the order of the records.
        """
        if self._number == 1:
            return [look(records, problems)]
        own = Problems(problems.dataset, problems.source)
        start, end = (len(records) * rank // self._number for rank in (self._rank, self._rank + 1))
        returned = look(records[start:end], own)
        everybodys = comm.all_gather((returned, own.findings))
        for _, findings in everybodys:
            problems.extend(findings.values())
        return [value for value, _ in everybodys]
