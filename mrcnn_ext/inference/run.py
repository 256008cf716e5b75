"""Predictions of a model for many images: as results on disk, or one after the other."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, Metadata
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from ..accel import accelerate as accelerate_model
from ..engine import UserError
from ..evaluation import instances_to_coco_json
from .identity import digest, model_identity, settings
from .models import Predictor, categories, dataset_metadata, load_predictor
from .pictures import draw
from .pipeline import Sample, run
from .results import ResultsFile
from .sources import open_source

__all__ = ["predict", "predictions"]

_GPU_BATCH = 8


def predict(
    model,
    source,
    output: str | os.PathLike,
    *,
    mapper: DatasetMapper | None = None,
    metadata: Metadata | str | None = None,
    min_score: float = 0.0,
    pictures: str | os.PathLike | None = None,
    picture_score: float = 0.5,
    accelerate: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    skip_unreadable: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> dict:
    """Writes a model's predictions for many images as COCO results.

    Images are read, predicted and written at the same time. Each image's results are on disk when it is done, in
    ``<output>.part``; the same call continues an interrupted run, and returns at once after a complete one.

    Args:
        model: a config, yaml or Lazy, whose weights are loaded; a `Predictor`; or a model, then with ``mapper``.
        source: see `open_source`: a folder, image, video, registered dataset, or list of files.
        output: file of results, .json. Beside it comes ``.images.json``: ids, names and sizes of the images, the
            categories, and what was skipped; ``COCO(images).loadRes(results)`` reads both.
        mapper: of a model that is given as such: ``DatasetMapper(cfg, is_train=False)``, say.
        metadata: names of the classes, and their ids in the results, or the registered dataset that has them.
            Default: those of the source, if it is a dataset, or of the config's test data; without any, ids are
            the model's own, from 0.
        min_score: predictions below are left out.
        pictures: folder for a picture of each image with its predictions, of the image's name.
        picture_score: predictions below are not drawn.
        accelerate: use `mrcnn_ext.accelerate`, with its defaults, if ``model`` is not accelerated already.
        batch_size: images at a time, at most; only images that are padded to the same size go together, which leaves
            their results alone. 0: one on the CPU, eight on a GPU.
        workers: threads that read images. 0: one on the CPU, where the model needs the cores, four with a GPU.
        skip_unreadable: leave out images that cannot be read, instead of ending with an error, and try them again
            when the run continues.
        overwrite: begin anew, whatever is there.
        progress: show a progress bar.

    Returns:
        {"images", "results", "skipped", "continued"}: how many images and results there are in the file, a list of
        {"file_name", "error"}, and how many images an earlier call had done.

    Raises:
        UserError: (a ValueError) the source, config, weights or an image are wrong, or ``output`` is of a run with
            another model, config, weights or source; or the classes of the source are others than the model's.
        ValueError: ``batch_size`` or ``workers`` is negative.
        RuntimeError: the model failed; the message names the image files.
    """
    _check_counts(batch_size, workers)
    predictor = _predictor(model, mapper)
    source = open_source(source)
    if (
        pictures is not None
        and source.root
        and Path(pictures).resolve().is_relative_to(Path(source.root).resolve())
    ):
        raise UserError(
            f"{pictures}: the pictures would be among the images of {source.root}: give another folder"
        )
    metadata = _metadata(metadata, source, predictor)
    kinds = categories(metadata)
    identity = {
        **model_identity(predictor.model),
        "preprocessing": digest(settings([predictor.mapper.augmentations, predictor.mapper.image_format])),
        "source": digest(source.identity),
        "categories": digest(sorted(kinds.items())),
        "min_score": min_score,
        "accelerate": accelerate,
        "pictures": None if pictures is None else os.fspath(pictures),
    }
    results = ResultsFile(output, identity, overwrite)
    continued = len(results.done)
    _check_images(source, results)
    if results.complete:
        summary = results.summary()
        return {**summary, "continued": summary["images"]}

    def finish(sample: Sample):
        image = {
            "id": sample.record["image_id"],
            "file_name": source.short_name(sample.record),
            **{key: sample.record[key] for key in ("height", "width", "frame") if key in sample.record},
        }
        if sample.error:
            return results.write(sample.index, image, [], error=sample.error)
        instances = _ready(sample, min_score)
        records = instances_to_coco_json(instances, image["id"])
        for record in records:
            record["category_id"] = _category_id(record["category_id"], kinds)
        if pictures is not None:
            likely = instances[instances.scores >= picture_score]
            path = _picture_path(pictures, image, sample.record)
            draw(sample.image, predictor.mapper.image_format, likely, metadata, path)
        results.write(sample.index, image, records, stamp=source.stamp(sample.index))

    steps = _run(
        predictor,
        source,
        finish,
        accelerate,
        batch_size,
        workers,
        done=set(results.done),
        skip_unreadable=skip_unreadable,
        keep_images=pictures is not None,
    )
    try:
        # Closed before the file: a thread may be writing.
        with (
            tqdm(total=len(source) or None, initial=continued, unit="image", disable=not progress) as bar,
            contextlib.closing(steps),
        ):
            for _ in steps:
                bar.update()
        return {**results.finish(list(kinds.values())), "continued": continued}
    finally:
        results.close()


def predictions(
    model,
    source,
    *,
    mapper: DatasetMapper | None = None,
    min_score: float = 0.0,
    accelerate: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    skip_unreadable: bool = False,
) -> Iterator[tuple[dict, Instances]]:
    """A model's predictions for many images, one after the other.

    Args:
        model, source, mapper, min_score, accelerate, batch_size, workers, skip_unreadable: as `predict`.

    Yields:
        record: ``file_name``, ``image_id``, ``height``, ``width``, and ``frame`` (from 0) of a video. The order is
            that of the source with ``batch_size`` 1, and with more, images of the same size come together.
        instances: on the CPU. Of an accelerated model ``pred_masks`` are `LazyMasks`.

    Raises:
        UserError, RuntimeError: as `predict`.
    """
    _check_counts(batch_size, workers)
    predictor = _predictor(model, mapper)

    def finish(sample: Sample):
        return sample.record, None if sample.error else _ready(sample, min_score)

    options = {"done": set(), "skip_unreadable": skip_unreadable}
    found = _run(predictor, open_source(source), finish, accelerate, batch_size, workers, **options)
    with contextlib.closing(found):
        for record, instances in found:
            if instances is not None:
                yield record, instances


def _picture_path(folder, image: dict, record: dict) -> Path:
    """Named as the image is, within the folder."""
    name = Path(image["file_name"])
    if "frame" in image:
        name = Path(f"{name.stem}_{image['frame']:06d}.jpg")
    elif name.is_absolute() or ".." in name.parts:
        name = Path(f"{image['id']}_{name.name}")
    path = Path(folder, name)
    if path.exists() and path.samefile(record["file_name"]):
        raise UserError(f"{path}: the picture would take the place of the image: give another folder")
    return path


def _category_id(label: int, kinds: dict[int, dict]) -> int:
    if kinds and label not in kinds:
        raise UserError(
            f"the model found something of class {label}, but the metadata name {len(kinds)} classes, from 0: "
            "give the metadata of its training data"
        )
    return kinds[label]["id"] if kinds else label


def _predictor(model, mapper) -> Predictor:
    if isinstance(model, nn.Module):
        if mapper is None:
            raise ValueError("a model needs mapper=, a DatasetMapper that says how its images are resized")
        return Predictor(model, mapper, Metadata())
    if isinstance(model, (str, os.PathLike, CfgNode, DictConfig)):
        model = load_predictor(model)
    if not isinstance(model, Predictor):
        raise TypeError(
            f"model must be a config, a Predictor or a torch.nn.Module, got {type(model).__name__}"
        )
    return model if mapper is None else replace(model, mapper=mapper)


def _check_counts(batch_size, workers):
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 0:
            raise ValueError(f"{name} must be at least 1, or 0 for the default, got {value}")


def _metadata(given, source, predictor) -> Metadata:
    if given is not None:
        return dataset_metadata(given) if isinstance(given, str) else given
    known = [m for m in (source.metadata, predictor.metadata) if m is not None and m.get("thing_classes")]
    if len(known) == 2 and list(known[0].thing_classes) != list(known[1].thing_classes):
        of_source, of_model = (
            f"{len(m.thing_classes)} ({', '.join(m.thing_classes[:3])}, ...) of {_name(m)}" for m in known
        )
        raise UserError(
            f"the source's classes, {of_source}, are not the model's, {of_model}: say whose the model predicts "
            "(metadata=, --classes)"
        )
    return known[0] if known else Metadata()


def _name(metadata):
    return "the checkpoint" if metadata.name == Metadata.name else metadata.name


def _check_images(source, results):
    for index, stamp in results.done.items():
        if source.stamp(index) != stamp:
            results.close()
            raise UserError(
                f"{source.name(index)} is not the image that {results.path} has results of: give the source that it "
                "was made with, another output, or overwrite it (overwrite=True, --overwrite)"
            )


def _run(predictor, source, finish, accelerate, batch_size, workers, **options):
    model = predictor.model
    if accelerate and not hasattr(model, "acceleration"):
        model = _accelerated(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    return run(
        model,
        source,
        predictor.mapper,
        finish,
        batch_size=batch_size or (1 if on_cpu else _GPU_BATCH),
        workers=workers or (1 if on_cpu else min(4, os.cpu_count() or 1)),
        **options,
    )


def _accelerated(model):
    if not isinstance(model, GeneralizedRCNN):
        logging.getLogger(__name__).warning(
            "%s is not accelerated: mrcnn_ext.accelerate takes GeneralizedRCNN", type(model).__name__
        )
        return model
    return accelerate_model(model, training=False, masks="auto")


def _ready(sample: Sample, min_score: float) -> Instances:
    instances = sample.instances.to(torch.device("cpu"))
    return instances[instances.scores >= min_score] if min_score > 0 else instances
