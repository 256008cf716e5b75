"""What a file says of its model besides the graph: sizes of its images, names of its classes and keypoints."""

import logging
from typing import Any

from detectron2.data import DatasetMapper, Metadata
from detectron2.data.transforms import AugmentationList, ResizeShortestEdge

__all__ = ["describe"]


def describe(mapper: DatasetMapper | None, metadata: Metadata | None) -> dict:
    """
    Args:
        mapper: of the model's images; None where it is not known.
        metadata: of the model's training data; None where it is not known.

    Returns:
        ``test_size``: {"min", "max"}, sides of `ResizeShortestEdge`; ``classes``: [{"id", "name"}] by the model's
        numbers; ``keypoint_names``; ``skeleton``: pairs of keypoint indices that lines join. Without what is not known.
    """
    about: dict[str, Any] = {}
    if mapper is not None:
        about["test_size"] = _test_size(mapper.augmentations)
    if metadata is None:
        return about
    names = list(metadata.get("thing_classes", None) or ())
    if names:
        ids = metadata.get("thing_dataset_id_to_contiguous_id", None) or {k: k for k in range(len(names))}
        by_label = {label: id for id, label in ids.items()}
        about["classes"] = [{"id": by_label.get(k, k), "name": name} for k, name in enumerate(names)]
    points = list(metadata.get("keypoint_names", None) or ())
    if points:
        about["keypoint_names"] = points
        rules = metadata.get("keypoint_connection_rules", None) or ()
        about["skeleton"] = [[points.index(a), points.index(b)] for a, b, *_ in rules]
    return about


def _test_size(augmentations) -> dict | None:
    if isinstance(augmentations, AugmentationList):
        augmentations = augmentations.augs
    resize = [one for one in augmentations if isinstance(one, ResizeShortestEdge)]
    others = [type(one).__name__ for one in augmentations if not isinstance(one, ResizeShortestEdge)]
    if len(resize) == 1 and not others and len(set(resize[0].short_edge_length)) == 1:
        return {"min": int(resize[0].short_edge_length[0]), "max": int(min(resize[0].max_size, 2**31 - 1))}
    logging.getLogger(__name__).warning(
        "The file does not say how images are resized for it: that is by %s, and not by one ResizeShortestEdge alone",
        ", ".join(others) or "several sizes",
    )
    return None
