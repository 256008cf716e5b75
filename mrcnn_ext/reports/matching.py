"""Which object each detection found, and what kind of error the others are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["FalseAlarm", "Matches", "Miss", "match_detections"]

BACKGROUND_IOU = (
    0.1  # below it a detection and an object have nothing to do with each other (Bolya et al., TIDE, 2020)
)


@dataclass
class Miss:
    """An object that no detection found.

    Attributes:
        truth: its annotation.
        reason: "low score", "box is off", "other class" or "not seen".
        detection: the record that the reason speaks of; None for "not seen".
        iou: of the two boxes.
    """

    truth: dict
    reason: str
    detection: dict | None = None
    iou: float = 0.0


@dataclass
class FalseAlarm:
    """A detection above the score threshold that found no object.

    Attributes:
        detection: its record.
        reason: "other class", "duplicate", "box is off" or "background".
        truth: the annotation that the reason speaks of; None for "background".
        iou: of the two boxes.
    """

    detection: dict
    reason: str
    truth: dict | None = None
    iou: float = 0.0


@dataclass
class Matches:
    """Detections of a data set beside its objects.

    Attributes:
        category_ids: (C,) in the order of ``confusion``.
        confusion: (C + 1, C + 1) int64, objects by true class (rows) and found class (columns). The last row counts
            detections of nothing, the last column objects that were missed.
        pairs: (annotation, record) of every object found under its own class.
        misses: objects that were not found, or as another class.
        false_alarms: detections that are none of ``pairs``.
    """

    category_ids: list
    confusion: np.ndarray
    pairs: list[tuple[dict, dict]] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    false_alarms: list[FalseAlarm] = field(default_factory=list)

    def reasons(self, kind: str) -> dict[str, int]:
        """How many "misses" or "false_alarms" there are of each reason, the most frequent first."""
        return dict(Counter(error.reason for error in getattr(self, kind)).most_common())


def match_detections(
    annotations: Sequence[dict],
    records: Sequence[dict],
    category_ids: Sequence,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> Matches:
    """Matches detections with objects by their boxes, as a person would read a picture of them.

    Detections from ``score_threshold`` up take, the best score first, the free object of their own class that they
    overlap most; those left over may then take a free object of another class, which is a confusion. So an object
    counts as confused only where nothing found it under its own class. Detections within a crowd region
    ("iscrowd") of their class count as nothing. Weaker detections serve to explain misses alone.

    Args:
        annotations: of COCO's format: "image_id", "category_id", "bbox" (x, y, width, height in pixels), "iscrowd".
        records: of COCO's results format, with "bbox" and "score".
        category_ids: of the classes, in the order wanted.
        score_threshold: that a picture would be drawn with.
        iou_threshold: intersection over union from which a box is right.

    Returns:
        Matches:
    """
    places = {category: place for place, category in enumerate(category_ids)}
    matches = Matches(list(category_ids), np.zeros((len(places) + 1,) * 2, dtype=np.int64))
    truth_of, found_in = defaultdict(list), defaultdict(list)
    for annotation in annotations:
        truth_of[annotation["image_id"]].append(annotation)
    for record in records:
        if record["category_id"] in places:
            found_in[record["image_id"]].append(record)
    for image_id in dict.fromkeys((*truth_of, *found_in)):
        image = _Image(truth_of[image_id], found_in[image_id], score_threshold, iou_threshold)
        image.add_to(matches, places)
    matches.misses.sort(key=lambda miss: -miss.truth["bbox"][2] * miss.truth["bbox"][3])
    matches.false_alarms.sort(key=lambda alarm: -alarm.detection["score"])
    return matches


class _Image:
    def __init__(self, annotations, records, score_threshold, iou_threshold):
        self.objects = [a for a in annotations if not a.get("iscrowd")]
        crowds = [a for a in annotations if a.get("iscrowd")]
        records = sorted(records, key=lambda record: -record["score"])
        self.ious = _ious(records, self.objects)
        self.same = _same_class(records, self.objects)
        self.records = records
        self.iou_threshold = iou_threshold
        self.strong = np.array([record["score"] >= score_threshold for record in records], dtype=bool)
        # Of each record the object that it found, and of each object the record.
        self.found = np.full(len(records), -1)
        self.finder = np.full(len(self.objects), -1)
        self._take(self.same, self.strong)
        in_crowd = (_ious(records, crowds, crowd=True) >= iou_threshold) & _same_class(records, crowds)
        self.ignored = in_crowd.any(axis=1) & (self.found < 0)
        self._take(~self.same, self.strong & ~self.ignored)

    def _take(self, allowed, records):
        for k in np.flatnonzero(records & (self.found < 0)):
            ious = np.where(allowed[k] & (self.finder < 0), self.ious[k], 0.0)
            if ious.size and ious.max() >= self.iou_threshold:
                self.found[k] = ious.argmax()
                self.finder[self.found[k]] = k

    def add_to(self, matches, places):
        for k, truth in enumerate(self.objects):
            finder = self.finder[k]
            row = places[truth["category_id"]]
            column = places[self.records[finder]["category_id"]] if finder >= 0 else -1
            matches.confusion[row, column] += 1
            if finder >= 0 and self.same[finder, k]:
                matches.pairs.append((truth, self.records[finder]))
            else:
                matches.misses.append(self._miss(k))
        for k in np.flatnonzero(self.strong & ~self.ignored):
            if self.found[k] >= 0 and self.same[k, self.found[k]]:
                continue
            if self.found[k] < 0:
                matches.confusion[-1, places[self.records[k]["category_id"]]] += 1
            matches.false_alarms.append(self._false_alarm(k))

    def _miss(self, k):
        ious, same = self.ious[:, k], self.same[:, k]
        weak_but_right = same & ~self.strong & (ious >= self.iou_threshold)
        taken = self.finder[k]
        if taken >= 0:
            return self._explained(k, "other class", taken)
        if weak_but_right.any():
            return self._explained(k, "low score", int(weak_but_right.argmax()))
        off = same & self.strong & (self.found < 0) & (ious >= BACKGROUND_IOU)
        if off.any():
            return self._explained(k, "box is off", int(np.where(off, ious, 0).argmax()))
        return Miss(self.objects[k], "not seen")

    def _explained(self, k, reason, record):
        return Miss(self.objects[k], reason, self.records[record], float(self.ious[record, k]))

    def _false_alarm(self, k):
        record, ious = self.records[k], self.ious[k]
        if self.found[k] >= 0:
            truth = self.found[k]
            return FalseAlarm(record, "other class", self.objects[truth], float(ious[truth]))
        own = np.where(self.same[k], ious, 0.0)
        if own.size and own.max() >= BACKGROUND_IOU:
            reason = "duplicate" if own.max() >= self.iou_threshold else "box is off"
            return FalseAlarm(record, reason, self.objects[own.argmax()], float(own.max()))
        return FalseAlarm(record, "background")


def _ious(records, annotations, crowd=False):
    """(N, M) float64."""
    if not records or not annotations:
        return np.zeros((len(records), len(annotations)))
    found = np.array([record["bbox"] for record in records], dtype=np.float64)
    truth = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    return mask_util.iou(found, truth, [int(crowd)] * len(annotations))


def _same_class(records, annotations):
    """(N, M) bool."""
    found = np.array([record["category_id"] for record in records]).reshape(-1, 1)
    truth = np.array([annotation["category_id"] for annotation in annotations]).reshape(1, -1)
    return found == truth
