"""Inference over the frames of videos, by models whose keypoint head carries a state from frame to frame."""

import contextlib
from collections.abc import Iterator

from torch import nn

from .keypoint_head.temporal import TemporalKeypointHead
from .tracks import BoxTracker, TrackStates

__all__ = ["carries_state", "streaming"]


def carries_state(model: nn.Module) -> bool:
    """Whether a model has a `TemporalKeypointHead`."""
    return any(isinstance(module, TemporalKeypointHead) for module in model.modules())


@contextlib.contextmanager
def streaming(model: nn.Module, min_score: float = 0.3, one_video: bool = False) -> Iterator[nn.Module]:
    """Lets a model take the images that it is given as frames of videos, in their order, until the context ends.

    Objects are tracked by their boxes (`BoxTracker`), and the keypoint head carries a state for each track. States and
    tracks begin anew with each video, and a lost track ends its state: memory does not grow with the length of a video.
    Batches of several frames work: their heads go through them in order. A model without a `TemporalKeypointHead` does
    what it does without.

    Args:
        model: in evaluation mode; accelerated or not.
        min_score: objects of lower scores have no track, and no state.
        one_video: all images are frames of one video. Otherwise their ``video_id`` tells, and images without are by
            themselves.

    Yields:
        The model.

    Raises:
        ImportError: scipy, which the tracker needs, is not installed.

    Example::

        with streaming(model, one_video=True):
            for frame in frames:
                instances = model([{"image": frame}])[0]["instances"]    # with pred_keypoints and track_ids
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()  # detectron2 evaluates functions too
    heads = [module for module in modules if isinstance(module, TemporalKeypointHead)]
    if not heads:
        yield model
        return

    streams = [_Videos(min_score, one_video) for _ in heads]

    def tell(_, inputs):
        for stream in streams:
            stream.expect([image.get("video_id") for image in inputs[0]])

    hook = model.register_forward_pre_hook(tell)
    try:
        for head, stream in zip(heads, streams, strict=True):
            head.stream = stream
        yield model
    finally:
        hook.remove()
        for head in heads:
            head.stream = None


class _Videos:
    """`TrackStates` of one video after the other."""

    def __init__(self, min_score: float, one_video: bool):
        self._min_score, self._one_video = min_score, one_video
        self._expected: list = []  # videos of the images of the batch
        self._video: object = None
        self._states = self._new()

    def _new(self):
        return TrackStates(BoxTracker(self._min_score))

    def expect(self, videos: list) -> None:
        self._expected = list(videos)

    def __len__(self) -> int:
        return len(self._states)

    def track(self, instances):
        """As `TrackStates.track`; None for an image that is of no video."""
        if not self._one_video:
            video = self._expected.pop(0) if self._expected else None
            if video != self._video:
                self._states = self._new()
            self._video = video
            if video is None:
                return None
        return self._states.track(instances)

    def gather(self, tracks, initial):
        return self._states.gather(tracks, initial)

    def put(self, tracks, state):
        self._states.put(tracks, state)
