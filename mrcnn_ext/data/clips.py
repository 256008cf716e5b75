"""Training data in clips of a few frames of a video, for models that carry a state from frame to frame."""

import os
import random
from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import torch
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from torch.utils.data import Dataset, Sampler

__all__ = ["ClipDataset", "ClipMapper", "build_clip_train_loader", "flatten_clips"]

_CLIP = 2**32  # above every track of a dataset


class ClipDataset(Dataset):
    """The clips of a dataset: one that begins at each frame from which on there are enough.

    Frames of a video are those with the same ``video_id``, in the order of ``frame_index`` (COCO-VID's ``frame_id``). A
    video that is shorter than a clip is one by itself, and so is an image without ``video_id``.

    Args:
        dicts: images in detectron2's standard format.
        num_frames: of a clip, T.
        stride: from one frame of a clip to the next, in frames of the dataset.
        wanted: whether a clip should have a frame such as this one; clips without are left out.

    Raises:
        ValueError: ``num_frames`` or ``stride`` is below 1, no image is of a video, a frame or track has no number, or
            nothing is left.
    """

    def __init__(
        self,
        dicts: Sequence[dict],
        num_frames: int,
        stride: int = 1,
        wanted: Callable[[dict], bool] | None = None,
    ):
        _check_steps(num_frames, stride)
        if num_frames > 1 and not any("video_id" in image for image in dicts):
            raise ValueError(
                f"clips of {num_frames} frames need videos, and no image of the training data has a video_id: train "
                "on single images (INPUT.CLIP.NUM_FRAMES 1), or give the images their video_id and frame_index and "
                "their annotations a track_id"
            )
        videos: dict[object, list[int]] = {}
        for place, image in enumerate(dicts):
            _check_numbers(image)
            # Datasets may count their videos from 0 each.
            video = (os.path.dirname(image["file_name"]), image["video_id"]) if "video_id" in image else place
            videos.setdefault(video, []).append(place)
        self.windows: list[list[int]] = []
        for places in videos.values():
            places.sort(key=lambda place: _index(dicts[place], place))
            for begin in range(max(1, len(places) - (num_frames - 1) * stride)):
                window = places[begin::stride][:num_frames]
                if wanted is None or any(wanted(dicts[place]) for place in window):
                    self.windows.append(window)
        if not self.windows:
            raise ValueError(
                "no clip of the training data is left: none has a frame with annotations to train on"
            )
        self._frames = DatasetFromList(list(dicts), copy=False)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict:
        """``frames``, dicts in order, and ``width`` and ``height`` of the first."""
        frames = [self._frames[place] for place in self.windows[index]]
        return {"frames": frames, "width": frames[0]["width"], "height": frames[0]["height"]}


class ClipMapper:
    """Maps the frames of a clip, all with the same augmentation, and says which instances are one object.

    Args:
        mapper: of single images, for training.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]):
        self.mapper = mapper

    def __call__(self, clip: dict) -> dict | None:
        """
        Args:
            clip: as `ClipDataset` gives it.

        Returns:
            ``frames``, what the mapper makes of each, whose ``instances`` have ``gt_track_ids`` (N,) int64: the
            ``track_id`` of the annotation, -1 where it has none; ``width`` and ``height``. None if the mapper rejects a
            frame.
        """
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        frames = []
        for frame in clip["frames"]:
            random.setstate(state[0])
            np.random.set_state(state[1])
            torch.set_rng_state(state[2])
            mapped = self._map(frame)
            if mapped is None:
                return None
            frames.append(mapped)
        return {**clip, "frames": frames}

    def _map(self, frame):
        annotations = frame.get("annotations", [])
        # Mappers leave annotations out; what each instance is of travels in the place of its class.
        numbered = [{**annotation, "category_id": place} for place, annotation in enumerate(annotations)]
        mapped = self.mapper({**frame, "annotations": numbered})
        if mapped is not None and "instances" in mapped:
            instances = mapped["instances"]
            places = instances.gt_classes.tolist()
            instances.gt_classes = torch.tensor(
                [annotations[place]["category_id"] for place in places], dtype=torch.int64
            )
            instances.gt_track_ids = torch.tensor(
                [-1 if (track := annotations[place].get("track_id")) is None else track for place in places],
                dtype=torch.int64,
            )
        return mapped


def flatten_clips(clips: Sequence[dict]) -> list[dict]:
    """The frames of a batch of clips of `ClipMapper`, one clip after the other. Tracks of different clips get different
    ``gt_track_ids``, of one video too."""
    frames = []
    for number, clip in enumerate(clips):
        for frame in clip["frames"]:
            if "instances" in frame:
                tracks = frame["instances"].gt_track_ids
                frame["instances"].gt_track_ids = torch.where(tracks < 0, tracks, tracks + number * _CLIP)
            frames.append(frame)
    return frames


def build_clip_train_loader(
    dataset: Sequence[dict],
    *,
    mapper: Callable[[dict], dict | None],
    num_frames: int,
    total_batch_size: int,
    stride: int = 1,
    sampler: Sampler | None = None,
    seed: int | None = None,
    wanted: Callable[[dict], bool] | None = None,
    **kwargs,
):
    """As detectron2's ``build_detection_train_loader``, with batches of clips: lists of frames, clip after clip.

    Args:
        dataset: dicts of all frames, with ``video_id``, ``frame_index`` and the ``track_id`` of annotations: frames
            without objects too (``filter_empty=False``), or clips jump over them.
        mapper: of single images.
        num_frames, stride, wanted: as `ClipDataset`'s.
        total_batch_size: images in all processes, a multiple of ``num_frames`` times these.
        sampler: of clips; None for a ``TrainingSampler`` of ``seed``.
        kwargs: ``aspect_ratio_grouping``, ``num_workers`` and others of ``build_detection_train_loader``.

    Raises:
        ValueError: as `ClipDataset`; or ``total_batch_size`` is below 1, or no multiple of ``num_frames``.
    """
    _check_steps(num_frames, stride)
    if total_batch_size < 1 or total_batch_size % num_frames:
        raise ValueError(
            f"a batch of {total_batch_size} images (SOLVER.IMS_PER_BATCH, dataloader.train.total_batch_size) is no "
            f"number of clips of {num_frames} frames (INPUT.CLIP.NUM_FRAMES): make it a multiple of {num_frames}"
        )
    clips = ClipDataset(dataset, num_frames, stride, wanted)
    return build_detection_train_loader(
        dataset=clips,
        mapper=ClipMapper(mapper),
        sampler=TrainingSampler(len(clips), seed=seed) if sampler is None else sampler,
        total_batch_size=total_batch_size // num_frames,
        collate_fn=flatten_clips,
        **kwargs,
    )


def _index(image, place):
    return image.get("frame_index", image.get("frame_id", place))


def _check_numbers(image):
    """Files of others may have names or nothing in the place of numbers."""
    values = [("frame_index (frame_id)", _index(image, 0))]
    values += [("track_id", annotation.get("track_id") or 0) for annotation in image.get("annotations", ())]
    for key, value in values:
        if not isinstance(value, Real):
            raise ValueError(f"{image['file_name']}: {key} must be a number for clips, got {value!r}")


def _check_steps(num_frames, stride):
    if num_frames < 1 or stride < 1:
        raise ValueError(
            f"clips need NUM_FRAMES and STRIDE of 1 or more (INPUT.CLIP), got {num_frames} and {stride}"
        )
