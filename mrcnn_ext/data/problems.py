"""What is wrong with a dataset, collected: every kind once, with a count and the first places."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["Finding", "Problems", "Unusable", "kind_of", "shown"]

_EXAMPLES = 3
_told: set[str] = set()


class Unusable(Exception):
    """A part of an annotation that nothing can be made of; says what is wrong and what would be right."""


def kind_of(text: str) -> str:
    """A kind for a description: those of the same words are of one kind, whatever their numbers."""
    return "-".join([word for word in text.split() if word.isalpha()][:6])


def shown(value) -> str:
    """A value in a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass
class Finding:
    """One kind of problem.

    Attributes:
        kind: a short name, the same for all of its kind.
        is_error: whether the dataset cannot be used because of it; otherwise it was repaired or left out.
        missing_file: it is a file that does not exist.
        count: how often it was met.
        total: among how many; 0 if nobody counted.
        examples: place and description of the first ones, "image 7 (a.jpg), annotation id 3: its bbox ...".
        images: ids of the images of the first ones.
    """

    kind: str
    is_error: bool
    missing_file: bool = False
    count: int = 0
    total: int = 0
    examples: list[str] = field(default_factory=list)
    images: list = field(default_factory=list)

    def __str__(self) -> str:
        if self.total:
            return f"{self.examples[0]} ({self.count} of {self.total} are like it)"
        return self.examples[0] + (f" (and {self.count - 1} more like it)" if self.count > 1 else "")


class Problems:
    """Collects the findings of one dataset.

    Args:
        dataset: its name, for messages.
        source: the file or folder of its annotations, for messages; "" if there is none.
    """

    def __init__(self, dataset: str, source: str = ""):
        self.dataset = dataset
        self.source = source
        self.findings: dict[tuple[str, bool], Finding] = {}

    def add(
        self,
        kind: str,
        where: str | Callable[[], str],
        text: str,
        *,
        is_error: bool,
        missing_file: bool = False,
        image=None,
    ) -> None:
        """Counts a problem. ``where`` may be a function, which is called for the first ones alone."""
        finding = self.findings.setdefault((kind, is_error), Finding(kind, is_error, missing_file))
        finding.count += 1
        if len(finding.examples) < _EXAMPLES:
            place = where() if callable(where) else where
            finding.examples.append(f"{place}: {text}" if place else text)
            finding.images.append(image)

    def error(self, kind: str, where: str | Callable[[], str], text: str, **options) -> None:
        self.add(kind, where, text, is_error=True, **options)

    def warn(self, kind: str, where: str | Callable[[], str], text: str, **options) -> None:
        self.add(kind, where, text, is_error=False, **options)

    def include(self, others: Problems) -> None:
        """Takes the findings of another reading of the same data, where it has none of their kind."""
        for key, finding in others.findings.items():
            self.findings.setdefault(key, copy.deepcopy(finding))

    def extend(self, findings: Iterable[Finding]) -> None:
        """Takes the findings of the records that follow, as if they had been added one by one."""
        for other in findings:
            own = self.findings.setdefault(
                (other.kind, other.is_error), Finding(other.kind, other.is_error, other.missing_file)
            )
            own.count += other.count
            own.examples = [*own.examples, *other.examples][:_EXAMPLES]
            own.images = [*own.images, *other.images][:_EXAMPLES]

    def judge_share(self, kind: str, total: int, most: float) -> None:
        """Turns the warnings of a kind into an error if they are more than the share ``most`` of ``total``."""
        finding = self.findings.get((kind, False))
        if finding is None:
            return
        finding.total = total
        if finding.count > most * total:
            del self.findings[kind, False]
            finding.is_error = True
            self.findings[kind, True] = finding

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings.values() if finding.is_error]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings.values() if not finding.is_error]

    @property
    def title(self) -> str:
        return f"dataset {self.dataset!r}" + (f" ({self.source})" if self.source else "")

    def log_warnings(self, again: bool = True) -> None:
        """Logs the warnings; without ``again`` those that this process has not logged yet."""
        for finding in self.warnings:
            text = f"{self.title}, {finding}"
            if again or text not in _told:
                logging.getLogger(__name__).warning("%s", text)
            _told.add(text)

    def raise_errors(self) -> None:
        """Raises if there are errors: FileNotFoundError if the first is a missing file, else ValueError. The message
        is a line for each kind."""
        errors = self.errors
        if errors:
            kind = FileNotFoundError if errors[0].missing_file else ValueError
            raise kind("\n".join(f"{self.title}, {finding}" for finding in errors))
