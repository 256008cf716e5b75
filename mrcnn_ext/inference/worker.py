"""The part of predicting that other processes can do: from places in a source to results as plain values."""

import copy
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances

from ..accel import accelerate as accelerate_model
from ..engine.errors import UserError
from ..engine.int8 import INT8_KEY, int8_from_config
from ..evaluation import instances_to_coco_json
from ..export import ExportedModel
from .filters import Filter
from .models import ExportedDetector, LoadedModel
from .pipeline import Sample, run
from .sources import ImageFiles

__all__ = ["GPU_BATCH", "Job", "Worker", "accelerated", "device_of", "job_of", "ready", "results_of", "share"]

GPU_BATCH = 8
_GPU_THREADS = 4  # that read


def device_of(model) -> torch.device:
    """Where a model, or an exported one, runs."""
    return model.device if isinstance(model, ExportedDetector) else next(model.parameters()).device


def share(device: torch.device, batch_size: int, workers: int) -> tuple[int, int]:
    """Images at a time and threads that read, where they are not given (0)."""
    if device.type == "cpu":  # which the model needs
        return batch_size or 1, workers or 1
    return batch_size or GPU_BATCH, workers or min(_GPU_THREADS, os.cpu_count() or 1)


def accelerated(model, predictor: LoadedModel):
    """The accelerated copy of a model, or the model where there is none."""
    if hasattr(model, "acceleration") or isinstance(model, ExportedDetector):
        return model
    if not isinstance(model, GeneralizedRCNN):
        logging.getLogger(__name__).warning(
            "%s is not accelerated: mrcnn_ext.accelerate takes GeneralizedRCNN", type(model).__name__
        )
        return model
    int8 = int8_from_config(predictor.int8, predictor.int8_loader)
    model = accelerate_model(model, training=False, masks="auto", int8=int8)
    if model.acceleration.int8 is not None:
        logging.getLogger(__name__).info("%s", model.acceleration.int8)
    return model


def ready(sample: Sample, keep: Filter) -> Instances:
    """What is kept of a sample's instances, on the CPU."""
    return keep(sample.instances.to(torch.device("cpu")))


def results_of(sample: Sample, keep: Filter, kinds: dict[int, dict]) -> list[dict]:
    """COCO results of what is kept of a sample.

    Args:
        kinds: the model's class -> {"id", "name"}; empty where the classes have no names.

    Raises:
        UserError: the model found something of a class that ``kinds`` does not have.
    """
    instances = ready(sample, keep)
    records = instances_to_coco_json(instances, sample.record["image_id"])
    for record in records:
        record["category_id"] = _category_id(record["category_id"], kinds)
    if instances.has("track_ids"):
        for record, number in zip(records, instances.track_ids.tolist(), strict=True):
            record["track_id"] = number or None
    return records


def _category_id(label: int, kinds: dict[int, dict]) -> int:
    if kinds and label not in kinds:
        raise UserError(
            f"the model found something of class {label}, but the metadata name {len(kinds)} classes, from 0: "
            "give the metadata of its training data"
        )
    return kinds[label]["id"] if kinds else label


@dataclass
class Job:
    """What a `Worker` does, in a form that can be sent to another process or machine.

    Attributes:
        predictor: on the CPU; its model is None where ``exported`` is given.
        exported: path of an exported model, which each worker opens for itself.
        source: with absolute file names.
        keep: which detections are kept.
        kinds: as of `results_of`.
        accelerate: run the accelerated model.
        batch_size, workers: as of `share`.
        skip_unreadable: images that cannot be read are reported instead of ending the run.
    """

    predictor: LoadedModel
    exported: str
    source: ImageFiles
    keep: Filter
    kinds: dict[int, dict]
    accelerate: bool
    batch_size: int
    workers: int
    skip_unreadable: bool


def job_of(predictor: LoadedModel, source: ImageFiles, **options) -> Job:
    """A job without what cannot be sent or is not needed.

    Args:
        options: the other attributes of `Job`.

    Raises:
        UserError: int8 is calibrated with a dataset, which other processes do not know.
    """
    model, exported = predictor.model, ""
    if isinstance(model, ExportedDetector):
        model, exported = None, str(Path(model.exported.path).absolute())
    elif next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    if options["accelerate"] and predictor.int8 and not Path(predictor.int8).is_file():
        raise UserError(
            f"{INT8_KEY}: Ray's workers need the file of a calibration, not the dataset {predictor.int8!r}"
        )
    predictor = replace(predictor, model=model, int8_loader=None)
    return Job(predictor, exported, source.for_other_processes(), **options)


class Worker:
    """Predicts for places in a source, with a model of its own.

    Args:
        job:
        device: of the model: "cpu", "cuda", ...
    """

    def __init__(self, job: Job, device: str):
        self._job = job
        predictor = job.predictor
        if job.exported:
            predictor = replace(predictor, model=ExportedDetector(ExportedModel(job.exported)))
        else:
            predictor.model.to(device)
        self._mapper = predictor.mapper
        self._model = accelerated(predictor.model, predictor) if job.accelerate else predictor.model

    def __call__(self, places: Sequence[int]) -> list[str]:
        """JSON of what `ResultsFile.write` takes of each place, in any order: ``index``, ``height`` and ``width`` of
        the image, ``results``, and ``error`` of one that cannot be read.

        Where the run cannot go on, the last is ``failed``, the message, with ``user_error``: exceptions would reach
        the process that asked for it with the traceback of this one.
        """
        lines = []
        try:
            lines.extend(self._lines(places))
        except (UserError, RuntimeError) as error:
            lines.append(json.dumps({"failed": str(error), "user_error": isinstance(error, UserError)}))
        return lines

    def _lines(self, places) -> Iterator[str]:
        job = self._job
        batch_size, workers = share(device_of(self._model), job.batch_size, job.workers)

        def finish(sample: Sample) -> str:
            size = {key: sample.record[key] for key in ("height", "width") if key in sample.record}
            results = [] if sample.error else results_of(sample, job.keep, job.kinds)
            return json.dumps({"index": sample.index, **size, "results": results, "error": sample.error})

        return run(
            self._model,
            _Part(job.source, places),
            self._mapper,
            finish,
            done=set(),
            batch_size=batch_size,
            workers=workers,
            skip_unreadable=job.skip_unreadable,
        )


class _Part:
    """Some places of a source."""

    sequential = False

    def __init__(self, source: ImageFiles, places: Sequence[int]):
        self._source, self._places = source, places

    def readers(self, image_format, done):
        for place in self._places:
            yield self._source.reader(int(place), image_format)
