"""Tracks over the frames of a video, the states that go with them, and the order of clips."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.structures import Boxes, Instances

from mrcnn_ext.modeling.tracks import BoxTracker, TrackStates, track_steps

pytestmark = pytest.mark.detectron2


def at(*lefts):
    return torch.tensor([[left, 10.0, left + 20, 50.0] for left in lefts]).reshape(-1, 4)


def update(tracker, *lefts, score=0.9, label=0):
    return tracker.update(at(*lefts), [score] * len(lefts), [label] * len(lefts), (100, 400))


def test_numbers_follow_what_overlaps():
    tracker = BoxTracker(min_score=0.5)
    assert update(tracker, 10, 100) == [1, 2]
    assert update(tracker, 103, 14, 300) == [2, 1, 3]
    assert tracker.update(at(14, 300), [0.9, 0.2], [1, 0], (100, 400)) == [4, None]
    assert update(tracker) == []
    assert update(tracker, 17, 104) == [1, 2], "they were hidden for a frame"


def test_what_is_lost_does_not_live_on():
    tracker = BoxTracker()
    update(tracker, 10)
    update(tracker, 12, 200)
    assert tracker.alive == {1, 2}
    for _ in range(20):
        update(tracker, 200)
    assert tracker.alive == {2} and len(tracker._numbers) == 1
    assert update(tracker, 12, 200) == [3, 2]


def frame(*lefts):
    instances = Instances((100, 400), pred_boxes=Boxes(at(*lefts)))
    instances.scores, instances.pred_classes = torch.full((len(lefts),), 0.9), torch.zeros(len(lefts))
    return instances


def test_a_state_goes_with_its_track_and_ends_with_it():
    states, zeros = TrackStates(BoxTracker(0.5)), lambda n: [torch.zeros(n, 2), torch.zeros(n, 3)]
    tracks = states.track(frame(10, 100))
    assert all(not part.any() for part in states.gather(tracks, zeros(2)))
    states.put(tracks, [torch.tensor([[1.0, 1], [2, 2]]), torch.tensor([[1.0] * 3, [2.0] * 3])])
    tracks = states.track(frame(200, 102, 12))
    first, second = states.gather(tracks, zeros(3))
    assert first[:, 0].tolist() == [0, 2, 1] and second[:, 2].tolist() == [0, 2, 1]
    states.put([*tracks[:2], None], [first + 5, second])
    assert len(states) == 3
    for _ in range(17):
        tracks = states.track(frame(200))
        states.put(tracks, [part[:1] for part in zeros(1)])
    assert len(states) == 1
    gone = states.gather(states.track(frame(100)), zeros(1))
    assert not gone[0].any(), "a new track begins from zero"


def test_a_kept_state_does_not_hold_that_of_others():
    states = TrackStates(BoxTracker())
    states.put([7, None], [torch.zeros(2, 1000)])
    (kept,) = states._states[7]
    assert kept.untyped_storage().nbytes() == 4000


def steps(*frames):
    return [
        (rows.tolist(), parents.tolist()) for rows, parents in track_steps([torch.tensor(f) for f in frames])
    ]


def test_steps_follow_tracks():
    # Rows: 0 and 1 in the first frame, 2 and 3 in the second, 4 and 5 in the third.
    assert steps([5, 6], [6, 5], [6, 9]) == [([0, 1, 5], []), ([2, 3], [1, 0]), ([4], [0])]
    assert steps([5], [], [5]) == [([0], []), ([1], [0])], "hidden for a frame"
    assert steps([-1], [-1]) == [([0, 1], [])]
    assert steps([5, 5], [5, 5, 5]) == [([0, 1], []), ([2, 3, 4], [0, 1, 0])]
    assert steps([1], [1], [2], [2]) == [([0, 2], []), ([1, 3], [0, 1])], "two clips go together"
    assert track_steps([]) == []
