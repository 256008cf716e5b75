"""Weights of other classes: each class begins with what the checkpoint has of the class of its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from .description import ABOUT
from .errors import UserError, did_you_mean

__all__ = ["ClassMapping", "lazily_mapped_classes", "mapped_classes"]


@dataclass
class ClassMapping:
    """How the class-specific weights of a checkpoint become those of a model with other classes.

    Args:
        names: the model's classes, in order.
        pairs: (class of the model, class of the checkpoint) where the names differ. The other classes take the
            checkpoint's class of their own name, and keep their initial weights where it has none.
    """

    names: Sequence[str]
    pairs: Sequence[tuple[str, str]] = field(default_factory=tuple)

    def apply(
        self, checkpoint: Mapping, own: Mapping[str, Tensor], file: str
    ) -> tuple[dict[str, Tensor], str]:
        """
        Args:
            checkpoint: ``model``, its weights, and what it says of itself: with neither a description nor COCO's 80
                classes it cannot be mapped.
            own: the model's parameters and buffers as they were initialised.
            file: its name, for messages.

        Returns:
            The checkpoint's weights, with rows for the model's classes, and a report in one line.

        Raises:
            UserError: the checkpoint's classes are not known, or a pair names a class that is not there.
        """
        weights = checkpoint["model"]
        found = _source_names(checkpoint, weights)
        if found is None:
            raise UserError(
                f"{file}: its classes are not known, so that they cannot be mapped: it has neither a description nor "
                "the 80 classes of COCO"
            )
        if found == list(self.names):
            return dict(weights), "The weights are of the model's own classes: nothing is mapped"
        sources = self._sources(found, file)
        rows = torch.tensor([-1 if name is None else found.index(name) for name in sources.values()])
        mapped, changed = dict(weights), 0
        for name, value in weights.items():
            if name.startswith("roi_heads.") and name in own and _is_predictor(name):
                background = ".cls_score." in name
                new = _map_rows(torch.as_tensor(value), own[name], len(found), rows, background)
                if new is not None:
                    mapped[name] = new
                    changed += 1
        if not changed:
            raise UserError(
                f"{file}: MAP_CLASSES finds no predictor whose rows are of its {len(found)} classes"
            )
        taken = [
            new if new == old else f"{new} from {old}" for new, old in sources.items() if old is not None
        ]
        missing = [new for new, old in sources.items() if old is None]
        report = (
            f"{changed} tensors of the predictors have been mapped by class: {', '.join(taken) or 'none'}"
        )
        return mapped, report + (f"; with initial weights: {', '.join(missing)}" if missing else "")

    def _sources(self, found, file) -> dict[str, str | None]:
        """Class of the model -> class of the checkpoint."""
        pairs = dict(self.pairs)
        if len(pairs) < len(self.pairs):
            raise UserError("MAP_CLASSES: a class of the training data is in several pairs")
        for new, old in pairs.items():
            if new not in self.names:
                hint = did_you_mean(new, self.names)
                raise UserError(f"MAP_CLASSES: {new!r} is no class of the training data{hint}")
            if old not in found:
                raise UserError(f"MAP_CLASSES: {file} has no class {old!r}{did_you_mean(old, found)}")
        by_name = {_plain(name): name for name in found}
        return {name: pairs.get(name, by_name.get(_plain(name))) for name in self.names}


def mapped_classes(cfg: CfgNode) -> ClassMapping | None:
    """By ``MODEL.MAP_CLASSES`` of a yaml config; None where it is not enabled."""
    section = cfg.MODEL.MAP_CLASSES
    if not section.ENABLED:
        return None
    return _mapping(cfg.DATASETS.TRAIN, section.PAIRS, "MODEL.MAP_CLASSES.PAIRS")


def lazily_mapped_classes(cfg: DictConfig) -> ClassMapping | None:
    """By ``train.map_classes`` (``enabled``, ``pairs``) of a LazyConfig; None where it is not enabled."""
    section = cfg.train.get("map_classes") or {}
    if not section.get("enabled", False):
        return None
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names", default=())
    names = [names] if isinstance(names, str) else list(names)
    return _mapping(names, section.get("pairs", ()), "train.map_classes.pairs")


def _mapping(datasets, pairs, key):
    classes = MetadataCatalog.get(datasets[0]).get("thing_classes") if datasets else None
    if not classes:
        raise UserError(f"{key}: the training data name no classes to map")
    if not all(len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs):
        raise UserError(
            f'{key}: pairs of a class of the data and one of the weights are wanted, [["rider", "person"]]'
        )
    return ClassMapping(list(classes), [tuple(pair) for pair in pairs])


def _is_predictor(name: str) -> bool:
    """Layers that have rows of classes: others may have as many rows by chance."""
    return any(part.startswith(("box_predictor", "predictor")) for part in name.split("."))


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


def _source_names(checkpoint, weights) -> list[str] | None:
    about = checkpoint.get(ABOUT)
    if isinstance(about, Mapping) and (names := (about.get("metadata") or {}).get("thing_classes")):
        return list(names)
    scores = [value for name, value in weights.items() if name.endswith("cls_score.weight")]
    if scores and all(len(value) == 81 for value in scores):
        return list(MetadataCatalog.get("coco_2017_train").thing_classes)
    return None


def _map_rows(value: Tensor, own: Tensor, count: int, rows: Tensor, background: bool) -> Tensor | None:
    """``own`` with the rows of the classes that come from others of ``value``; None if these are no rows of classes.

    Scores have a row for each class and one for the background, boxes four for each class, masks one, or one for each
    pixel.
    """
    extra = int(background)
    per_class = (len(own) - extra) // len(rows)
    of_classes = len(value) == count * per_class + extra and len(own) == len(rows) * per_class + extra
    if not per_class or not of_classes or value.shape[1:] != own.shape[1:]:
        return None
    new = own.detach().clone().cpu()
    theirs = value[: count * per_class].unflatten(0, (count, per_class)).to(new)
    ours = new[: len(rows) * per_class].unflatten(0, (len(rows), per_class))
    ours[rows >= 0] = theirs[rows[rows >= 0]]
    if extra:
        new[-1] = value[-1].to(new)
    return new
