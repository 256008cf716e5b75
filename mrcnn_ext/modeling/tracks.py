"""Which boxes are one object over the frames of a video, and what is kept of each from frame to frame."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["BoxTracker", "TrackStates", "track_steps"]

_IOU = 0.3  # of the boxes of one object in frames that follow one another
_LOST = 15  # frames in which an object may be hidden
_MOST = 10000


class BoxTracker:
    """Numbers boxes over the frames of a video, from 1.

    Boxes of one class that overlap most from frame to frame are one object (detectron2's ``BBoxIOUTracker``, one for
    each class: it does not look at classes itself). Its Hungarian trackers are not used: they also match what does
    not overlap.

    Args:
        min_score: boxes of lower scores have no track.

    Attributes:
        alive: tracks of the last frame and those that may still be found again: an object may be hidden for 15 frames.

    Raises:
        ImportError: scipy, which detectron2's trackers import, is not installed.
    """

    def __init__(self, min_score: float = 0.0):
        from detectron2.tracking.bbox_iou_tracker import BBoxIOUTracker

        self._make = BBoxIOUTracker
        self._min_score = min_score
        self._trackers: dict[int, BBoxIOUTracker] = {}
        self._numbers: dict[
            tuple[int, int], int
        ] = {}  # of what is alive, by class and the tracker's own number
        self._count = 0

    @property
    def alive(self) -> set[int]:
        return set(self._numbers.values())

    def update(
        self, boxes: Tensor, scores: Sequence[float], classes: Sequence[int], size: tuple[int, int]
    ) -> list[int | None]:
        """The next frame.

        Args:
            boxes: (N, 4): x0, y0, x1, y1 in pixels.
            scores, classes: N each.
            size: height and width of the frame.

        Returns:
            The track of each box; None if its score is too low.
        """
        by_class: dict[int, list[int]] = {label: [] for label in self._trackers}
        for place, (score, label) in enumerate(zip(scores, classes, strict=True)):
            if score >= self._min_score:
                by_class.setdefault(label, []).append(place)
        tracks: list[int | None] = [None] * len(boxes)
        numbers = {}
        for label, places in by_class.items():
            if label not in self._trackers:
                self._trackers[label] = self._make(
                    video_height=size[0],
                    video_width=size[1],
                    max_num_instances=_MOST,
                    max_lost_frame_count=_LOST,
                    min_box_rel_dim=0.0,
                    min_instance_period=1,
                    track_iou_threshold=_IOU,
                )
            found = Instances(size)
            found.pred_boxes = Boxes(boxes[places])
            found.scores = torch.tensor([scores[place] for place in places], dtype=torch.float32)
            found.pred_classes = torch.zeros(len(places), dtype=torch.int32)
            # After the frame's own come those that are lost.
            for index, own in enumerate(map(int, self._trackers[label].update(found).ID)):
                number = self._numbers.get((label, own))
                if number is None:
                    self._count += 1
                    number = self._count
                numbers[label, own] = number
                if index < len(places):
                    tracks[places[index]] = number
        self._numbers = numbers
        return tracks


class TrackStates:
    """The state of a recurrent head for each track of a video. A track that is lost takes its state with it, so that
    there are no more states than objects that may be in view.

    Args:
        tracker: of the video; it is updated by `track`.
    """

    def __init__(self, tracker: BoxTracker):
        self._tracker = tracker
        self._states: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def track(self, instances: Instances) -> list[int | None]:
        """Tracks of the detections of the next frame, with ``pred_boxes``, ``scores`` and ``pred_classes``."""
        tracks = self._tracker.update(
            instances.pred_boxes.tensor.detach().float().cpu(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            instances.image_size,
        )
        alive = self._tracker.alive
        self._states = {track: state for track, state in self._states.items() if track in alive}
        return tracks

    def gather(self, tracks: Sequence[int | None], initial: list[Tensor]) -> list[Tensor]:
        """The states of N tracks, ``initial``'s rows for those that have none.

        Args:
            initial: each (N, ...), as the state before the first frame.
        """
        known = [(row, self._states[track]) for row, track in enumerate(tracks) if track in self._states]
        if not known:
            return initial
        rows = torch.tensor([row for row, _ in known], device=initial[0].device)
        return [
            zeros.index_copy(0, rows, torch.stack([state[index] for _, state in known]))
            for index, zeros in enumerate(initial)
        ]

    def put(self, tracks: Sequence[int | None], state: list[Tensor]) -> None:
        """Keeps the states of N tracks, each (N, ...), for the next frame."""
        for row, track in enumerate(tracks):
            if track is not None:
                # Copies: a view would keep the state of all objects of its frame.
                self._states[track] = [part[row].clone() for part in state]


def track_steps(tracks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The order in which the RoIs of clips can be gone through, as many at once as possible.

    A RoI follows one of the same track in the last frame before it that has some; where both frames have several, as
    among the proposals of training, each of them follows another.

    Args:
        tracks: for each frame, in order, (R_t,) int64: the track of each RoI, a number of its own in each clip;
            below 0 for none.

    Returns:
        For each step (rows, parents), int64 on the CPU: rows among the RoIs of all frames, and which row of the step
        before each of them follows, by its place there. In the first step there is nothing before, and ``parents`` is
        empty.
    """
    last: dict[int, list[tuple[int, int]]] = {}  # of each track: step of its last RoIs and place within it
    steps: list[tuple[list[int], list[int]]] = []
    row = 0
    for frame in tracks:
        new: dict[int, list[tuple[int, int]]] = {}
        for track in frame.tolist():
            before = last.get(track) if track >= 0 else None
            step, parent = before[len(new.get(track, ())) % len(before)] if before else (-1, 0)
            step += 1
            if step == len(steps):
                steps.append(([], []))
            rows, parents = steps[step]
            if step:
                parents.append(parent)
            new.setdefault(track, []).append((step, len(rows)))
            rows.append(row)
            row += 1
        last.update(new)
    return [(torch.tensor(rows), torch.tensor(parents, dtype=torch.int64)) for rows, parents in steps]
