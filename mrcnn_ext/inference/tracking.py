"""Which detections of a video's frames are one object, by detectron2's tracker."""

from collections.abc import Sequence

import torch

from ..engine.errors import UserError
from ..modeling.tracks import BoxTracker

__all__ = ["Tracker"]


class Tracker:
    """Gives the results of frame after frame their ``track_id``, from 1, as `BoxTracker` numbers their boxes.

    Args:
        min_score: results below have no track: None is their ``track_id``.

    Raises:
        UserError: scipy, which detectron2's trackers import, is not installed.
    """

    def __init__(self, min_score: float = 0.0):
        try:
            self._tracker = BoxTracker(min_score)
        except ImportError as error:
            raise UserError(f"tracks need {error.name}: pip install {error.name}") from error

    def update(self, records: Sequence[dict], size: tuple[int, int]) -> None:
        """Adds ``track_id`` to COCO results of the next frame.

        Args:
            records: its results.
            size: its height and width.
        """
        boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = [record["score"] for record in records]
        tracks = self._tracker.update(boxes, scores, [record["category_id"] for record in records], size)
        for record, track in zip(records, tracks, strict=True):
            record["track_id"] = track
