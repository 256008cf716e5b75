"""What of a model came from a file, in a line."""

from collections import Counter
from collections.abc import Iterable

__all__ = ["load_report"]

_COUNTER = "num_batches_tracked"  # of batch norms; many files lack it
_EXAMPLES = 4


def load_report(file: str, own: Iterable[str], absent: Iterable[str], unused: Iterable[str]) -> str:
    """
    Args:
        file: its name.
        own: names of the model's tensors.
        absent: those of them that keep their initial values.
        unused: names of the file's tensors that have no place in the model.

    Returns:
        how many tensors of each part of the model are from the file, which are not, and what is left of the file.
    """
    wanted = [name for name in own if not name.endswith(_COUNTER)]
    lost = set(absent)
    missing = [name for name in wanted if name in lost]
    left = sorted({_part(name, 2) for name in unused if not name.endswith(_COUNTER)})
    totals, without = (Counter(_part(name, 1) for name in names) for names in (wanted, missing))
    parts = ", ".join(f"{part} {total - without[part]} of {total}" for part, total in totals.items())
    text = f"{file}: {len(wanted) - len(missing)} of the model's {len(wanted)} tensors are from it ({parts})"
    if missing:
        text += f"; with initial values: {_some(sorted({_part(name, 2) for name in missing}))}"
    return text + (f"; not used of it: {_some(left)}" if left else "")


def _part(name: str, depth: int) -> str:
    """The module that a tensor is of, down to a depth."""
    return ".".join(name.split(".")[:-1][:depth]) or name


def _some(names: list[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (
        f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    )
