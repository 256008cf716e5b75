"""Images are read and made ready while the model works, and its answers are finished while it works on."""

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.structures import ImageList, Instances
from torch import nn

from ..engine.errors import UserError
from ..files import DiskFullError
from ..modeling import streaming
from .models import resized
from .sources import ImageFiles, Video, Webcam, describe

__all__ = ["Sample", "batches", "overlapped", "run"]

_AHEAD = 2  # batches whose answers may wait to be finished


@dataclass
class Sample:
    """One image on its way.

    Attributes:
        index: place in the source.
        record: ``file_name``, ``image_id``, ``height``, ``width``; ``frame`` of a video.
        inputs: what the model takes.
        image: (H, W, C) as it was read, in the model's format, if it was asked for.
        instances: what the model gave.
        error: why the image could not be read.
    """

    index: int
    record: dict
    inputs: dict | None = None
    image: np.ndarray | None = None
    instances: Instances | None = None
    error: str = ""


def run(
    model: nn.Module,
    source: ImageFiles | Video | Webcam,
    mapper: DatasetMapper,
    finish: Callable[[Sample], object],
    *,
    done: set[int],
    batch_size: int,
    workers: int,
    skip_unreadable: bool,
    keep_images: bool = False,
    limit: int = 0,
    track_score: float = 0.5,
) -> Iterator[object]:
    """What ``finish`` makes of each image, as it becomes ready.

    Frames of a video reach the model in their order, one after the other or in batches: a keypoint head that carries a
    state has it for each track (`mrcnn_ext.modeling.streaming`).

    The model runs in the thread that iterates. ``finish`` runs in one other thread, one image after the other;
    ``workers`` threads read. No more than a few batches are held at a time.

    Args:
        mapper: its ``augmentations`` and ``image_format`` make the inputs.
        done: places in the source that are left out.
        batch_size: images at a time. Only images which the model pads to the same size share a batch, so that each
            has the answer that it would have alone.
        skip_unreadable: an image that cannot be read reaches ``finish`` with its ``error``.
        limit: images from this place in the source on are left out; 0 for none.
        track_score: objects of a video with lower scores have no track for such a head.

    Raises:
        UserError: an image cannot be read, and is not to be skipped.
        RuntimeError: the model or ``finish`` failed; the message names the file.
    """

    def read(reader):
        return _read(*reader, mapper, skip_unreadable, keep_images)

    def finish_all(samples):
        return [_naming([sample], finish, sample) for sample in samples]

    def predicted(groups):
        for group in groups:
            readable = [sample for sample in group if not sample.error]
            if readable:
                _naming(readable, _predict, model, readable)
            yield group

    threads = 1 if source.sequential else workers
    ahead = max(2 * threads, 2 * batch_size)
    was_training = model.training
    model.eval()
    try:
        with contextlib.ExitStack() as stack:
            # Closed from the last to the first when something fails: no thread stays behind.
            stack.enter_context(streaming(model, track_score, one_video=source.sequential))
            readers = source.readers(mapper.image_format, done)
            if limit:
                readers = itertools.takewhile(lambda reader: reader[0] < limit, readers)
            samples = stack.enter_context(contextlib.closing(overlapped(read, readers, threads, ahead)))
            groups = batches(_until_end(samples), lambda s: _padded_size(model, s), batch_size)
            # What the model has done is not lost when it fails later.
            results = overlapped(finish_all, predicted(groups), 1, _AHEAD, complete=True)
            for result in stack.enter_context(contextlib.closing(results)):
                yield from result
    finally:
        model.train(was_training)


def overlapped(
    function: Callable, items: Iterable, workers: int, ahead: int, complete: bool = False
) -> Iterator:
    """``function(item)`` of each item in their order, computed by threads, ``ahead`` of them in advance.

    When that ends early, what waits is dropped, or with ``complete`` done to the end.
    """
    executor = ThreadPoolExecutor(workers, thread_name_prefix=f"mrcnn_ext-{threading.get_ident()}")
    pending = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=not complete)


def batches(samples: Iterable, key: Callable, batch_size: int) -> Iterator[list]:
    """Groups of up to ``batch_size`` with equal keys; which ones depends on nothing but the order of the samples.

    One that eight batches' worth of images have passed goes as it is.
    """
    waiting = {}  # in the order of their first samples
    for number, sample in enumerate(samples):
        kind = key(sample)
        waiting.setdefault(kind, (number, []))[1].append(sample)
        if len(waiting[kind][1]) == batch_size:
            yield waiting.pop(kind)[1]
        oldest = next(iter(waiting), None)
        if waiting and waiting[oldest][0] + 8 * batch_size <= number:
            yield waiting.pop(oldest)[1]
    yield from (group for _, group in waiting.values())


def _until_end(samples):
    for sample in samples:
        if sample is None:
            return
        yield sample


def _read(index, record, read_image, mapper, skip_unreadable, keep_image) -> Sample | None:
    """None beyond the last frame of a video."""
    record = dict(record)
    try:
        image = read_image()
        if image is None:
            return None
        utils.check_image_size(record, image)
        inputs = _inputs(image, mapper)
    # Decoders raise anything for a damaged file: OSError, ValueError, SyntaxError, struct.error, ...
    except Exception as error:
        reason = str(error) or type(error).__name__
        if "called" in record:  # a file of ours, whose name says nothing to its user
            reason = reason.replace(str(record["file_name"]), record["called"])
        if not skip_unreadable:
            raise UserError(
                f"{describe(record)}: the image cannot be read: {reason}; to leave out images that cannot be read: "
                "--skip-unreadable (skip_unreadable=True)"
            ) from error
        logging.getLogger(__name__).warning("%s: skipped, it cannot be read: %s", describe(record), reason)
        return Sample(index, record, error=reason)
    sample = Sample(index, record, image=image if keep_image else None)
    sample.inputs = {**record, "image": inputs}
    return sample


def _inputs(image, mapper):
    try:
        return resized(image, mapper)
    except ValueError as error:
        height, width = image.shape[:2]
        raise ValueError(
            f"nothing of its {height} x {width} pixels (height x width) is left at the model's size ({error})"
        ) from error


def _predict(model, samples):
    with torch.no_grad():
        outputs = model([sample.inputs for sample in samples])
    for sample, output in zip(samples, outputs, strict=True):
        if "instances" not in output:
            raise UserError(f"{type(model).__name__} gives {', '.join(output)}, but no instances")
        sample.instances = output["instances"]
        sample.inputs = None


def _padded_size(model, sample):
    """Size of the batch in which the model would put the image alone."""
    if sample.error:
        return None
    backbone = getattr(model, "backbone", None)
    image = sample.inputs["image"].to("meta")
    if backbone is None:
        return tuple(image.shape)
    padded = ImageList.from_tensors(
        [image],
        getattr(backbone, "size_divisibility", 0),
        padding_constraints=getattr(backbone, "padding_constraints", None),
    )
    return tuple(padded.tensor.shape)


def _naming(samples, function, *args):
    """Calls a function; an error names the images that it was about."""
    try:
        return function(*args)
    except (UserError, DiskFullError):
        raise
    except Exception as error:
        files = ", ".join(describe(sample.record) for sample in samples)
        raise RuntimeError(f"{files}: {type(error).__name__}: {error}") from error
