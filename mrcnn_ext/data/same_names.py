"""Classes and keypoints of several datasets for one model."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_same_names"]


def check_same_names(kind: str, names: dict[str, Sequence[str]]) -> None:
    """Refuses datasets that have the same class, or keypoint, at different places: a model learns places.

    Args:
        kind: "class" or "keypoint".
        names: of the classes or keypoints of each dataset, in order.

    Raises:
        ValueError: names both datasets, the class and its places.
    """
    known: dict[str, tuple[int, str]] = {}
    for dataset, listed in names.items():
        for place, name in enumerate(listed):
            other_place, other = known.setdefault(name, (place, dataset))
            if other_place != place and other != dataset:
                raise ValueError(
                    f"datasets {other!r} and {dataset!r} do not have the same order: {kind} {name!r} is number "
                    f"{other_place} (from 0) of {other!r} ({_listed(names[other])}), number {place} of {dataset!r} "
                    f"({_listed(listed)}). Write one of them with the other's order"
                )


def _listed(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], "..."] if len(names) > 5 else names)
