"""How good keypoints of tracks are: OKS AP of all, of seen and of occluded joints, PCK, jitter."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...evaluation.coco_metrics import TruthCOCO, evaluate_task
from ...evaluation.pose_tracks import pose_metrics
from ...layers import heatmaps_to_keypoints
from .features import Tracks

__all__ = ["SHOWN", "score"]

SHOWN = ("AP", "AP seen", "AP occluded", "PCK@0.2", "PCK@0.05", "PCK@0.05-occluded", "jitter")
_KINDS = {"AP": (1, 2), "AP seen": (2,), "AP occluded": (1,)}  # visibilities that count


def score(
    content: dict,
    data: Tracks,
    heatmaps: Tensor,
    sigmas: Sequence[float],
    box_scale: float,
    rows: Sequence[int] | None = None,
) -> dict[str, float]:
    """
    Args:
        content: of the annotation file.
        data: what the heatmaps are of.
        heatmaps: (N, K, S, S) logits.
        sigmas: (K,) of object keypoint similarity.
        box_scale: sides of the RoIs over those of the boxes.
        rows: the people that are looked at; None for all.

    Returns:
        dict: by the names of `SHOWN`, in points, percent and pixels per frame squared.
    """
    chosen = list(range(len(data))) if rows is None else list(rows)
    covered = 0.53 / box_scale**2
    points = heatmaps_to_keypoints(
        heatmaps[chosen], data.boxes[chosen], "oks", torch.tensor(list(sigmas)), covered
    ).cpu()
    images, annotations = data.images.tolist(), data.annotations.tolist()
    records = []
    for row, keypoints in zip(chosen, points, strict=True):
        places = keypoints[:, [0, 1, 3]].clone()
        places[:, :2] -= 0.5  # COCO's are indices of pixels
        records.append(
            {
                "image_id": images[row],
                "annotation_id": annotations[row],
                "category_id": 1,
                "keypoints": places.flatten().tolist(),
                "score": float(keypoints[:, 3].mean()),
            }
        )
    kept = {record["annotation_id"] for record in records}
    seen = {record["image_id"] for record in records}
    content = {
        **content,
        "images": [image for image in content["images"] if image["id"] in seen],
        "annotations": [a for a in content["annotations"] if a["id"] in kept],
    }
    result = {}
    for name, counts in _KINDS.items():
        truth = TruthCOCO(_only(content, counts))
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluate_task(truth, records, "keypoints", sigmas=sigmas)
        result[name] = 100 * float(evaluation.stats[0])
    return {**result, **pose_metrics(TruthCOCO(content), records, thresholds=(0.2, 0.05))}


def _only(content: dict, counts: Sequence[int]) -> dict:
    """The annotations with no other keypoints than those of some visibilities."""
    content = copy.deepcopy(content)
    for annotation in content["annotations"]:
        points = np.array(annotation["keypoints"], dtype=float).reshape(-1, 3)
        points[~np.isin(points[:, 2], counts)] = 0
        annotation["keypoints"] = points.flatten().tolist()
        annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
    return content
