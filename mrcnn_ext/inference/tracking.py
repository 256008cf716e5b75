"""Which detections of a video's frames are one object, by detectron2's tracker."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

from ..engine.errors import UserError

__all__ = ["Tracker"]

_IOU = 0.3  # of the boxes of one object in frames that follow one another
_LOST = 15  # frames in which an object may be hidden
_MOST = 10000


class Tracker:
    """Gives the results of frame after frame their ``track_id``, from 1.

    Boxes of one class that overlap most from frame to frame are one object (detectron2's ``BBoxIOUTracker``, one for
    each class: it does not look at classes itself). Its Hungarian trackers are not used: they also match what does
    not overlap.

    Args:
        min_score: results below have no track: None is their ``track_id``.

    Raises:
        UserError: scipy, which detectron2's trackers import, is not installed.
    """

    def __init__(self, min_score: float = 0.0):
        try:
            from detectron2.tracking.bbox_iou_tracker import BBoxIOUTracker
        except ImportError as error:
            raise UserError(f"tracks need {error.name}: pip install {error.name}") from error
        self._make = BBoxIOUTracker
        self._min_score = min_score
        self._trackers: dict = {}
        self._ids: dict[tuple, int] = {}

    def update(self, records: Sequence[dict], size: tuple[int, int]) -> None:
        """Adds ``track_id`` to COCO results of the next frame.

        Args:
            records: its results.
            size: its height and width.
        """
        by_class: dict = {id: [] for id in self._trackers}
        for record in records:
            record["track_id"] = None
            if record["score"] >= self._min_score:
                by_class.setdefault(record["category_id"], []).append(record)
        for id, found in by_class.items():
            if id not in self._trackers:
                self._trackers[id] = self._make(
                    video_height=size[0],
                    video_width=size[1],
                    max_num_instances=_MOST,
                    max_lost_frame_count=_LOST,
                    min_box_rel_dim=0.0,
                    min_instance_period=1,
                    track_iou_threshold=_IOU,
                )
            tracked = self._trackers[id].update(_instances(found, size))
            # After the frame's own come those that it has lost.
            for record, number in zip(found, tracked.ID[: len(found)], strict=True):
                record["track_id"] = self._ids.setdefault((id, int(number)), len(self._ids) + 1)


def _instances(records, size) -> Instances:
    boxes = torch.tensor([record["bbox"] for record in records], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances(size)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.tensor([record["score"] for record in records], dtype=torch.float32)
    instances.pred_classes = torch.zeros(len(records), dtype=torch.int32)
    return instances
