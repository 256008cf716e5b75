"""Which of a model's detections are kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances

from ..engine.errors import UserError, did_you_mean

__all__ = ["Filter", "make_filter"]


@dataclass(frozen=True)
class Filter:
    """Keeps the likeliest detections of some classes.

    Attributes:
        min_score: those below are left out.
        labels: the model's numbers of the classes that are kept, sorted; None for all.
        top_k: how many of an image are kept at most, the likeliest; 0 for all.
    """

    min_score: float = 0.0
    labels: tuple[int, ...] | None = None
    top_k: int = 0

    def __call__(self, instances: Instances) -> Instances:
        keep = torch.ones(len(instances), dtype=torch.bool, device=instances.scores.device)
        if self.min_score > 0:
            keep &= instances.scores >= self.min_score
        if self.labels is not None:
            wanted = torch.tensor(self.labels, device=instances.pred_classes.device)
            keep &= torch.isin(instances.pred_classes, wanted)
        rows = keep.nonzero()[:, 0]
        if self.top_k and len(rows) > self.top_k:
            best = instances.scores[rows].sort(descending=True, stable=True).indices[: self.top_k]
            rows = rows[best.sort().values]
        return instances if len(rows) == len(instances) else instances[rows]

    @property
    def identity(self) -> dict:
        """What a run that continues must share; without what is at its default, as earlier versions wrote it."""
        about = {"min_score": self.min_score}
        if self.labels is not None:
            about["classes"] = list(self.labels)
        if self.top_k:
            about["top_k"] = self.top_k
        return about


def make_filter(
    kinds: Mapping[int, dict], min_score: float = 0.0, only: Sequence[str | int] | str = (), top_k: int = 0
) -> Filter:
    """
    Args:
        kinds: the model's class -> {"id", "name"}; empty where the classes have no names.
        only: names or category ids of the classes that are kept, or some of them in one string with commas; empty
            for all.

    Raises:
        UserError: there is no such class.
        ValueError: ``min_score`` or ``top_k`` cannot be.
    """
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score must be from 0 to 1, got {min_score}")
    if top_k < 0:
        raise ValueError(f"top_k must be at least 1, or 0 for all, got {top_k}")
    only = [only] if isinstance(only, (str, int)) else list(only)
    if not only:
        return Filter(min_score, None, top_k)
    labels = {label for wanted in only for label in _labels(str(wanted), kinds)}
    if not labels:
        raise UserError(
            "only names no class, so nothing would be kept: give names or ids, or leave it out (--only)"
        )
    return Filter(min_score, tuple(sorted(labels)), top_k)


def _labels(wanted: str, kinds) -> list[int]:
    by_name = {str(kind["name"]).lower(): label for label, kind in kinds.items()}
    by_id = {str(kind["id"]): label for label, kind in kinds.items()}
    if wanted.strip().lower() in by_name:  # names may have commas themselves
        return [by_name[wanted.strip().lower()]]
    labels = []
    for part in wanted.split(","):
        key = part.strip().lower()
        if not key:
            continue
        label = by_name.get(key, by_id.get(key))
        if label is None and not kinds and key.isdigit():
            label = int(key)
        if label is None:
            known = ", ".join(f"{kind['name']} ({kind['id']})" for kind in list(kinds.values())[:20])
            known = known + (", ..." if len(kinds) > 20 else "") or "none has a name: give numbers, from 0"
            close = did_you_mean(key, list(by_name))
            raise UserError(
                f"the model has no class {part.strip()!r}{close}{'' if close else '.'} Its classes: {known}"
            )
        labels.append(label)
    return labels
