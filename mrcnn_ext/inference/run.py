"""Predictions of a model for many images: as results on disk, or one after the other."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, Metadata
from detectron2.data import detection_utils as utils
from detectron2.structures import Instances
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from ..engine import UserError
from ..engine.int8 import int8_from_config
from ..engine.setup import register_datasets
from ..modeling import carries_state
from .annotate import RunVideo, make_missing
from .drawing import Style
from .filters import Filter, make_filter
from .identity import digest, model_identity, settings
from .image_files import ImageFiles
from .models import ExportedDetector, LoadedModel, categories, dataset_metadata, load_predictor
from .outputs import ImageOutputs, OutputOptions
from .pipeline import Sample, run
from .ray_data import RayOptions, map_on_actors
from .results import ResultsFile
from .sources import open_source
from .tracking import Tracker
from .worker import GPU_BATCH, Worker, accelerated, device_of, job_of, ready, results_of, share

__all__ = ["predict", "predictions"]


def predict(
    model,
    source,
    output: str | os.PathLike,
    *,
    mapper: DatasetMapper | None = None,
    metadata: Metadata | str | None = None,
    min_score: float = 0.0,
    only: Sequence[str | int] | str = (),
    top_k: int = 0,
    pictures: str | os.PathLike | None = None,
    cutouts: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
    labelme: str | os.PathLike | None = None,
    video: str | os.PathLike | None = None,
    picture_score: float = 0.5,
    style: Style | None = None,
    fps: float = 0.0,
    track: bool = False,
    accelerate: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    limit: int = 0,
    skip_unreadable: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    ray: RayOptions | None = None,
) -> dict:
    """Writes a model's predictions for many images.

    Images are read, predicted and written at the same time. Each image's results are on disk when it is done, in
    ``<output>.part``; the same call continues an interrupted run, and returns at once after a complete one. With
    other ``pictures``, ``cutouts``, ``masks``, ``labelme``, ``video``, ``picture_score`` or ``style`` it makes these
    anew from the results that are there. A keypoint head that carries a state from frame to frame has one for each
    track of a video; an interrupted video begins anew with it.

    Args:
        model: a config, yaml or Lazy, whose weights are loaded; a file of `export_model`; a `LoadedModel`; or a model,
            then with ``mapper``.
        source: see `open_source`. A camera is recorded until Ctrl-C, and cannot be continued.
        output: file of results: COCO's (.json), JSON lines (.jsonl) or a table (.csv, .parquet). Beside it comes
            ``.images.json``: ids, names and sizes of the images, the categories, and what was skipped;
            ``COCO(images).loadRes(results)`` reads both.
        mapper: of a model that is given as such: ``DatasetMapper(cfg, is_train=False)``, say.
        metadata: names of the classes, and their ids in the results, or the registered dataset that has them.
            Default: those of the source, if it is a dataset, or of the config's test data; without any, ids are
            the model's own, from 0.
        min_score: predictions below are left out.
        only: names or category ids of the classes that are kept; all by default.
        top_k: predictions of an image that are kept, the likeliest; 0 for all.
        pictures: folder for a picture of each image with its predictions, of the image's name.
        cutouts: folder for a PNG of each object without its background (RGBA).
        masks: folder for a PNG of each object's mask.
        labelme: folder for a JSON file of each image, to correct by hand in LabelMe.
        video: file of an annotated video (.mp4, .avi, .mkv, .webm), whose tracks have a colour each; of images, too.
        picture_score: predictions below take no part in these five, nor in tracks.
        style: of the pictures and the video.
        fps: frames a second of the video; 0 for the source's, or 10.
        track: give results the ``track_id`` that the objects of a video have in all its frames; the video has the
            same.
        accelerate: use `mrcnn_ext.accelerate`, with its defaults, and in int8 where the config says so
            (``MODEL.ACCELERATE_INT8``), if ``model`` is not accelerated already.
        batch_size: images at a time, at most; only images that are padded to the same size go together, which leaves
            their results alone. 0: one on the CPU, eight on a GPU.
        workers: threads that read images. 0: one on the CPU, where the model needs the cores, four with a GPU.
        limit: stop after so many images or frames; 0 for none.
        skip_unreadable: leave out images that cannot be read, instead of ending with an error, and try them again
            when the run continues.
        overwrite: begin anew, whatever is there. Without it, masks and LabelMe files that are not as they were
            written (corrected by hand, or of something else) and a video of another run are never replaced.
        progress: show a progress bar.
        ray: predict by actors of Ray, each with a copy of the model on its GPU or CPUs; this process writes. The images
            must be where all machines can read them. Results, and what continues, are those of one process.

    Returns:
        {"images", "results", "skipped", "continued", "drawn"}: how many images and results there are in the file, a
        list of {"file_name", "error"}, how many images an earlier call had done, and of how many of these files such
        as pictures were made now.

    Raises:
        UserError: (a ValueError) the source, config, weights or an image are wrong, or ``output`` is of a run with
            another model, config, weights or source; or the classes of the source are others than the model's.
        ValueError: ``batch_size``, ``workers``, ``limit``, ``top_k`` or a score cannot be.
        RuntimeError: the model failed; the message names the image files.
        mrcnn_ext.files.DiskFullError: there is no room; the same call continues when there is.
    """
    _check_counts(batch_size=batch_size, workers=workers, limit=limit)
    if not 0 <= picture_score <= 1:
        raise ValueError(f"picture_score must be from 0 to 1, got {picture_score}")
    predictor = _predictor(model, mapper)
    source = _open(source, predictor)
    follows = carries_state(predictor.model) and source.sequential
    if follows and ray is not None:
        raise UserError(
            "the model's keypoint head carries a state from frame to frame: its videos go through one process, without "
            "Ray (ray=, --ray)"
        )
    metadata = _metadata(metadata, source, predictor)
    kinds = categories(metadata)
    keep = make_filter(kinds, min_score, only, top_k)
    names = {kind["id"]: kind["name"] for kind in kinds.values()}
    folders = {"pictures": pictures, "cutouts": cutouts, "masks": masks, "labelme": labelme}
    folders = {kind: None if folder is None else os.fspath(folder) for kind, folder in folders.items()}
    options = OutputOptions(**folders, min_score=picture_score, style=style or Style())
    outputs = ImageOutputs(options, names, metadata, source, overwrite)
    scores = {kind: picture_score for kind, used in (("track", track), ("state", follows)) if used}
    identity = _identity(predictor, source, kinds, keep, accelerate=accelerate, limit=limit, scores=scores)
    drawing = None
    if video is not None:
        drawing = RunVideo(video, fps, picture_score, options.style, names, metadata, source, overwrite)
        # Before a part file is there.
        drawing.check(begins=not any(map(os.path.exists, (output, f"{os.fspath(output)}.part"))))
    change = _change_of_tracks(track, follows, picture_score)
    results = ResultsFile(output, identity, overwrite)
    with contextlib.closing(results):
        if follows and not results.complete:
            results.done.clear()  # the state is that after all frames before
        continued = len(results.done)
        _check_images(source, results)
        if drawing is not None:
            drawing.own(results)
        live = drawing.begin() if drawing is not None and source.live and not results.complete else None
        if not results.complete:
            finish = partial(
                _finish, predictor=predictor, source=source, keep=keep, kinds=kinds, results=results
            )
            finish = partial(finish, outputs=outputs, video=live)
            how = {"accelerate": accelerate, "batch_size": batch_size, "workers": workers, "limit": limit}
            how["skip_unreadable"] = skip_unreadable
            if ray is not None:
                steps = _on_ray(predictor, source, results, ray, keep=keep, kinds=kinds, **how)
            else:
                keep_images = bool(options.folders) or live is not None
                how |= {"keep_images": keep_images, "done": set(results.done), "track_score": picture_score}
                steps = _run(predictor, source, finish, **how)
            _predict_all(steps, source, progress, continued, limit=limit, video=live)
        drawn = make_missing(source, results, outputs, progress)
        made = dict(options.identity)
        if drawing is not None:
            if live is None and not drawing.is_made(results):
                drawing.write(results, progress)
                drawn = max(drawn, len(results.done)) if continued else drawn
            made["video"] = drawing.identity
        if results.complete:
            if made:
                results.note(made)
            return {**results.summary(), "continued": continued, "drawn": drawn}
        points = metadata.get("keypoint_names", None) or ()
        summary = results.finish(list(kinds.values()), made, points, change)
        return {**summary, "continued": continued, "drawn": drawn}


def _identity(predictor, source, kinds, keep: Filter, *, accelerate, limit, scores) -> dict:
    """What a run must have in common with the one that it continues.

    Args:
        scores: by use, "track" and "state" of those there are, below which an object takes no part.
    """
    model = predictor.model
    int8 = _int8_identity(predictor.int8) if accelerate and predictor.int8 else None
    return {
        **(model.identity if isinstance(model, ExportedDetector) else model_identity(model)),
        "preprocessing": digest(settings([predictor.mapper.augmentations, predictor.mapper.image_format])),
        "source": digest(source.identity),
        "categories": digest(sorted(kinds.items())),
        **keep.identity,
        "accelerate": accelerate,
        **({} if int8 is None else {"int8": int8}),
        **({"limit": limit} if limit else {}),
        **scores,
    }


def _change_of_tracks(track, follows, min_score):
    """What is done to an image's results at the end, None for nothing.

    Args:
        track: whether results shall have the ids of tracks.
        follows: whether they have them, those that the state of the model goes by.
    """
    tracker = Tracker(min_score) if track else None  # which says what is not installed
    if track == follows:
        return None
    if tracker is None:
        return lambda records, image: [record.pop("track_id", None) for record in records]
    return lambda records, image: tracker.update(records, (image["height"], image["width"]))


def _predict_all(steps, source, progress, continued, *, limit, video):
    """Takes the steps, one an image that is not done. A recording ends with Ctrl-C."""
    total = min(len(source), limit) if limit and len(source) else len(source) or limit
    try:
        # Closed before the file: a thread may be writing.
        with (
            tqdm(total=total or None, initial=continued, unit="image", disable=not progress) as bar,
            contextlib.closing(steps),
        ):
            for _ in steps:
                bar.update()
    except KeyboardInterrupt:
        if not source.live:
            raise
        source.stop()
        logging.getLogger(__name__).warning("Interrupted: the recording ends here")
    except BaseException:
        if video is not None:
            video.discard()
        raise
    if video is not None:
        video.close()


def _finish(sample: Sample, *, predictor, source, keep: Filter, kinds, results, outputs, video) -> None:
    """Writes what there is to an image."""
    image = _about(sample.record, source)
    if sample.error:
        return results.write(sample.index, image, [], error=sample.error)
    records = results_of(sample, keep, kinds)
    if sample.image is not None:
        pixels = _rgb(sample.image, predictor.mapper.image_format)
        outputs.write(pixels, image, os.fspath(sample.record["file_name"]), records)
        if video is not None:
            video.write(pixels, [dict(record) for record in records])
    made = outputs.options.identity
    results.write(sample.index, image, records, stamp=source.stamp(sample.index), made=made)


def _about(record, source) -> dict:
    """An image as the results name it."""
    known = {key: record[key] for key in ("height", "width", "frame") if key in record}
    return {"id": record["image_id"], "file_name": source.short_name(record), **known}


def _on_ray(predictor, source, results, ray, *, keep, kinds, accelerate, limit, **options) -> Iterator[None]:
    """Results of what is not done, written as they come from Ray's actors."""
    if not isinstance(source, ImageFiles):
        raise UserError("Ray predicts for images: a video or camera is one stream, for one process")
    places = [i for i in range(min(len(source), limit or len(source))) if i not in results.done]
    if not places:
        return
    job = job_of(predictor, source, keep=keep, kinds=kinds, accelerate=accelerate, **options)
    together = 4 * (options["batch_size"] or GPU_BATCH)  # some are of other sizes
    lines = map_on_actors(partial(Worker, job), places, ray, batch=together)
    with contextlib.closing(lines):
        for line in map(json.loads, lines):
            if "failed" in line:
                raise (UserError if line["user_error"] else RuntimeError)(line["failed"])
            index = line["index"]
            size = {key: line[key] for key in ("height", "width") if key in line}
            image = _about({**source.record(index), **size}, source)
            if line["error"]:
                results.write(index, image, [], error=line["error"])
            else:
                results.write(index, image, line["results"], stamp=source.stamp(index))
            yield


def _rgb(image, image_format):
    """(H, W, 3) uint8; detectron2's read_image gives gray images one channel."""
    return image.repeat(3, axis=2) if image.shape[2] == 1 else utils.convert_image_to_rgb(image, image_format)


def predictions(
    model,
    source,
    *,
    mapper: DatasetMapper | None = None,
    min_score: float = 0.0,
    only: Sequence[str | int] | str = (),
    top_k: int = 0,
    accelerate: bool = True,
    batch_size: int = 0,
    workers: int = 0,
    limit: int = 0,
    skip_unreadable: bool = False,
    track_score: float = 0.5,
) -> Iterator[tuple[dict, Instances]]:
    """A model's predictions for many images, one after the other.

    Args:
        model, source, mapper, min_score, only, top_k, accelerate, batch_size, workers, limit, skip_unreadable: as
            `predict`; ``only`` takes the names that the model, or the dataset it is used for, has.
        track_score: objects of a video with lower scores have no track for a keypoint head that carries a state.

    Yields:
        record: ``file_name``, ``image_id``, ``height``, ``width``, and ``frame`` (from 0) of a video. The order is
            that of the source with ``batch_size`` 1, and with more, images of the same size come together.
        instances: on the CPU. Of an accelerated model ``pred_masks`` are `LazyMasks`.

    Raises:
        UserError, RuntimeError: as `predict`.
    """
    _check_counts(batch_size=batch_size, workers=workers, limit=limit)
    predictor = _predictor(model, mapper)
    source = _open(source, predictor)
    kinds = categories(_metadata(None, source, predictor)) if only else {}
    keep = make_filter(kinds, min_score, only, top_k)

    def finish(sample: Sample):
        return sample.record, None if sample.error else ready(sample, keep)

    options = {"done": set(), "skip_unreadable": skip_unreadable, "limit": limit, "track_score": track_score}
    found = _run(predictor, source, finish, accelerate, batch_size, workers, **options)
    with contextlib.closing(found):
        for record, instances in found:
            if instances is not None:
                yield record, instances


def _predictor(model, mapper) -> LoadedModel:
    if isinstance(model, nn.Module):
        if mapper is None:
            raise ValueError("a model needs mapper=, a DatasetMapper that says how its images are resized")
        return LoadedModel(model, mapper, Metadata())
    if isinstance(model, (str, os.PathLike, CfgNode, DictConfig)):
        model = load_predictor(model)
    if not isinstance(model, LoadedModel):
        raise TypeError(
            f"model must be a config, a LoadedModel or a torch.nn.Module, got {type(model).__name__}"
        )
    return model if mapper is None else replace(model, mapper=mapper)


def _open(source, predictor: LoadedModel):
    """The source, which may be a dataset that the model's checkpoint knows."""
    if isinstance(source, str) and not os.path.exists(source):
        register_datasets(predictor.data([source]))
    return open_source(source)


def _check_counts(**counts):
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"{name} must be at least 1, or 0 for the default, got {value}")


def _metadata(given, source, predictor) -> Metadata:
    if given is not None:
        given = dataset_metadata(given) if isinstance(given, str) else given
        return _check_classes(given, predictor.model)
    known = [m for m in (source.metadata, predictor.metadata) if m is not None and m.get("thing_classes")]
    if len(known) == 2 and list(known[0].thing_classes) != list(known[1].thing_classes):
        of_source, of_model = (
            f"{len(m.thing_classes)} ({', '.join(m.thing_classes[:3])}, ...) of {_name(m)}" for m in known
        )
        raise UserError(
            f"the source's classes, {of_source}, are not the model's, {of_model}: say whose the model predicts "
            "(metadata=, --classes)"
        )
    return _check_classes(known[0], predictor.model) if known else Metadata()


def _check_classes(metadata, model) -> Metadata:
    """Names of other classes than the model's would be wrong for every result."""
    names, count = metadata.get("thing_classes", None) or (), _num_classes(model)
    if names and count is not None and len(names) != count:
        raise UserError(
            f"the model predicts {count} classes, and {_name(metadata)} names {len(names)} ({', '.join(names[:3])}, "
            "...): give the dataset whose classes it was trained for (metadata=, --classes)"
        )
    return metadata


def _num_classes(model) -> int | None:
    """None for a model that does not say."""
    if isinstance(model, ExportedDetector):
        return len(model.exported.metadata.get("classes") or ()) or None
    for owner in (getattr(model, "roi_heads", None), model):
        if isinstance(count := getattr(owner, "num_classes", None), int):
            return count
    return None


def _name(metadata):
    return "the checkpoint" if metadata.name == Metadata.name else metadata.name


def _check_images(source, results):
    for index, stamp in results.done.items():
        if source.stamp(index) != stamp:
            raise UserError(
                f"{source.name(index)} is not the image that {results.path} has results of: give the source that it "
                "was made with, another output, or overwrite it (overwrite=True, --overwrite)"
            )


def _run(predictor, source, finish, accelerate, batch_size, workers, **options):
    model = accelerated(predictor.model, predictor) if accelerate else predictor.model
    batch_size, workers = share(device_of(model), batch_size, workers)
    return run(model, source, predictor.mapper, finish, batch_size=batch_size, workers=workers, **options)


def _int8_identity(value: str) -> str:
    int8_from_config(value, lambda name: ())  # refuses what is neither a file nor a dataset
    return digest(Path(value).read_bytes().hex() if os.path.isfile(value) else value)
