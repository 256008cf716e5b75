"""Poses of detections laid beside the annotated ones, and what is measured of them in video. Runs without
detectron2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coco_metrics import TruthCOCO
from .jitter import jitter
from .pck import box_sizes, percentage_of_correct_keypoints

__all__ = ["MatchedPoses", "match_poses", "pose_metrics"]


@dataclass(frozen=True)
class MatchedPoses:
    """Annotated people and what was found of each.

    Attributes:
        annotations: the N annotations, crowds left out.
        predicted: (N, K, 2) pixels, NaN for who was not found.
        truth: (N, K, 2) pixels.
        visibility: (N, K) 0 not labelled, 1 occluded, 2 seen.
        sizes: (N,) the longer side of each annotated box, pixels.
        found: (N,) bool.
    """

    annotations: list[dict]
    predicted: np.ndarray
    truth: np.ndarray
    visibility: np.ndarray
    sizes: np.ndarray
    found: np.ndarray

    def tracks(self, truth: TruthCOCO):
        """(predicted, truth, valid) of each run of frames of one "track_id" that follow each other, as `jitter` takes
        them."""
        order = defaultdict(list)
        for k, annotation in enumerate(self.annotations):
            if "track_id" in annotation:
                image = truth.imgs[annotation["image_id"]]
                frame = image.get("frame_index", image.get("frame_id"))
                if frame is None:
                    raise ValueError(
                        f"annotation {annotation['id']} has a track_id, but its image {image['id']} has no "
                        "frame_index"
                    )
                order[image.get("video_id"), annotation["track_id"]].append((frame, k))
        for places in order.values():
            places.sort()
            frames = np.array([frame for frame, _ in places])
            rows = np.array([k for _, k in places])
            for run in np.split(rows, np.flatnonzero(np.diff(frames) != 1) + 1):
                valid = (self.visibility[run] > 0) & self.found[run, None]
                yield self.predicted[run], self.truth[run], valid


def match_poses(truth: TruthCOCO, records: Sequence[dict], least_iou: float = 0.5) -> MatchedPoses:
    """Lays predictions beside the annotated people.

    A prediction that names an "annotation_id" was made for that person's box. The others go, the best score first, to
    the person of their image and class whose box they share most of, if that is ``least_iou`` or more; each person
    takes one.

    Args:
        truth: annotations with keypoints.
        records: COCO results with "keypoints", one list of x, y, score of each.
        least_iou: of boxes.

    Raises:
        ValueError: an annotation_id that is not in the data, or another number of keypoints than its.
    """
    people = [a for a in truth.anns.values() if a.get("keypoints") and not a.get("iscrowd")]
    joints = len(people[0]["keypoints"]) // 3 if people else 0
    points = np.array([a["keypoints"] for a in people], dtype=np.float64).reshape(len(people), joints, 3)
    predicted = np.full((len(people), joints, 2), np.nan)
    found = np.zeros(len(people), bool)
    rows = {a["id"]: k for k, a in enumerate(people)}
    by_image = defaultdict(list)
    for k, annotation in enumerate(people):
        by_image[annotation["image_id"], annotation["category_id"]].append(k)
    for record in sorted(records, key=lambda r: -r["score"]):
        if people and len(record["keypoints"]) != 3 * joints:
            raise ValueError(
                f"a prediction for image {record['image_id']} has {len(record['keypoints']) // 3} keypoints, the "
                f"people of the data have {joints}"
            )
        if "annotation_id" in record:
            row = rows.get(record["annotation_id"])
            if row is None:
                raise ValueError(
                    f"annotation_id {record['annotation_id']!r} of a prediction is not in the data"
                )
            row = None if found[row] else row
        else:
            free = [k for k in by_image[record["image_id"], record["category_id"]] if not found[k]]
            row = max(free, key=lambda k: _iou(people[k]["bbox"], record["bbox"]), default=None)
            if row is not None and _iou(people[row]["bbox"], record["bbox"]) < least_iou:
                row = None
        if row is not None:
            found[row] = True
            predicted[row] = np.reshape(record["keypoints"], (joints, 3))[:, :2]
    sizes = box_sizes([a["bbox"] for a in people])
    return MatchedPoses(people, predicted, points[..., :2], points[..., 2].astype(int), sizes, found)


def pose_metrics(
    truth: TruthCOCO,
    records: Sequence[dict],
    thresholds: Sequence[float] = (0.2,),
    names: Sequence[str] = (),
    least_iou: float = 0.5,
) -> dict[str, float]:
    """PCK of all, of seen and of occluded joints, and jitter where people have tracks.

    Args:
        truth, records, least_iou: as for `match_poses`. Who was not found has no joint right; jitter is that of those
            who were.
        thresholds: the a's of PCK@a.
        names: of the joints.

    Returns:
        dict: "PCK@0.2" (the mean over the joints), "PCK@0.2-<joint>" of each, "PCK@0.2-seen" and "PCK@0.2-occluded",
        in percent; "found", percent of the people; "jitter", pixels per frame squared, with tracks. NaN, and nothing
        of single joints, where nobody is annotated.
    """
    poses = match_poses(truth, records, least_iou)
    names = names if poses.annotations else ()  # nobody says how many there are
    result: dict[str, float] = {}
    for threshold in thresholds:
        for suffix, counts in (
            ("", poses.visibility > 0),
            ("-seen", poses.visibility == 2),
            ("-occluded", poses.visibility == 1),
        ):
            pck = percentage_of_correct_keypoints(
                poses.predicted, poses.truth, counts, poses.sizes, threshold, names
            )
            result[f"PCK@{threshold:g}{suffix}"] = pck.mean
            if not suffix:
                joints = zip(pck.names, pck.per_joint, strict=True)
                result |= {f"PCK@{threshold:g}-{name}": float(value) for name, value in joints}
    result["found"] = 100 * float(poses.found.mean()) if len(poses.found) else float("nan")
    if any("track_id" in annotation for annotation in poses.annotations):
        result["jitter"] = jitter(poses.tracks(truth))
    return result


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(0.0, w) * max(0.0, h)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)
