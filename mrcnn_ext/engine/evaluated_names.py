"""Whether a checkpoint has learnt the classes and keypoints of the data that it is evaluated on."""

from collections.abc import Iterable, Mapping

from detectron2.data import MetadataCatalog

from .errors import UserError

__all__ = ["check_evaluated_names"]


def check_evaluated_names(about: Mapping | None, path: str, datasets: Iterable[str], has_keypoints: bool):
    """Compares names and their order, by which predictions are matched with the ground truth.

    Names that either side does not know are not compared.

    Args:
        about: what the checkpoint says of itself (`mrcnn_ext.engine.description`); None for nothing.
        path: of the checkpoint, for messages.
        datasets: to evaluate on.
        has_keypoints: whether the model predicts keypoints.

    Raises:
        UserError: they differ; names those of the checkpoint and those of the data.
    """
    learnt = (about.get("metadata") or {}) if isinstance(about, Mapping) else {}
    kinds = {"classes": "thing_classes"} | ({"keypoints": "keypoint_names"} if has_keypoints else {})
    registered = MetadataCatalog.list()
    for kind, key in kinds.items():
        ours = list(learnt.get(key) or ())
        for name in datasets:
            theirs = list(MetadataCatalog.get(name).get(key) or ()) if name in registered else []
            if ours and theirs and ours != theirs:
                _refuse(kind, path, ours, name, theirs)


def _refuse(kind, path, ours, name, theirs):
    differ = f"other {kind}"
    if sorted(ours) == sorted(theirs):
        differ = f"the {kind} in another order"
    raise UserError(
        f"dataset {name!r} has {differ} than the checkpoint {path}: {len(theirs)} ({', '.join(theirs)}); the "
        f"checkpoint {len(ours)} ({', '.join(ours)}). It can be evaluated on data with its own {kind}, in its order"
    )
