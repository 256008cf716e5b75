"""Images per second of a whole evaluation, from files to AP: stock detectron2 beside the accelerated model."""

import contextlib
import io
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator as StockCOCOEvaluator
from detectron2.evaluation import inference_on_dataset

from ..engine.errors import UserError
from ..engine.trainer import thin_out
from ..evaluation import COCOEvaluator
from ..inference import LoadedModel, predict
from .model import Subject, limit_detections
from .timing import race_times

__all__ = ["header", "line", "measure_dataset", "part_of"]

_TASKS = ("bbox", "segm", "keypoints")
_NAMES = ("stock", "ours", "predict")


def measure_dataset(subject: Subject, num_images: int, threads: int, budget: float = 0.0) -> dict:
    """One row: seconds and images per second to evaluate a dataset, and the AP that each came to.

    "stock" is detectron2's ``inference_on_dataset`` with its loader and its COCOEvaluator; "ours" the same with the
    accelerated model, masks lazy, and our evaluator, as the tools do with ``MODEL.ACCELERATE``; "predict" is
    `mrcnn_ext.inference.predict`, which writes COCO results and computes no AP. Every one runs once uncounted.

    Args:
        subject: with a dataset in COCO's format.
        num_images: so many images of it, evenly spaced; 0 for all.

    Raises:
        UserError: the subject has no dataset, or one without a COCO annotation file.
    """
    torch.set_num_threads(threads)
    mapper = DatasetMapper(subject.cfg, is_train=False)
    # The config's, whatever other rows have set.
    limits = subject.cfg.TEST.DETECTIONS_PER_IMAGE, subject.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST
    limit_detections(subject.stock, *limits)
    models = {"stock": subject.stock, "ours": subject.accelerated(masks="lazy")}
    row = {"model": subject.name, "weights": subject.weights or "random", "dataset": subject.dataset}
    row |= dict(zip(("instances", "min_score"), limits, strict=True))
    row |= {"device": subject.device.type, "threads": threads, "bf16": models["ours"].acceleration.bf16}
    with part_of(subject.dataset, num_images) as name, tempfile.TemporaryDirectory() as folder:
        records = DatasetCatalog.get(name)
        metadata = MetadataCatalog.get(name)
        tasks = [task for task, on in zip(_TASKS, _has(subject.cfg, metadata), strict=True) if on]
        sigmas = metadata.get("keypoint_oks_sigmas", subject.cfg.TEST.KEYPOINT_OKS_SIGMAS)

        makers, scores = {"stock": StockCOCOEvaluator, "ours": COCOEvaluator}, {}

        def evaluate(which):
            loader = build_detection_test_loader(
                records, mapper=mapper, num_workers=subject.cfg.DATALOADER.NUM_WORKERS
            )
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator = makers[which](name, tuple(tasks), kpt_oks_sigmas=sigmas, distributed=False)
                scores[which] = inference_on_dataset(models[which], loader, evaluator)

        def write():
            predictor = LoadedModel(models["ours"], mapper, metadata)
            predict(predictor, name, Path(folder, "results.json"), overwrite=True, progress=False)

        functions = {which: partial(evaluate, which) for which in makers}
        times = race_times({**functions, "predict": write}, torch.device("cpu"), budget, (1, 5))
    for which, found in scores.items():
        row |= {f"{which}_{task}_ap": found[task]["AP"] for task in tasks}
    row["images"] = len(records)
    for which, seconds in times.items():
        row[f"{which}_s"] = statistics.median(seconds)
        row[f"{which}_images_per_s"] = len(records) / row[f"{which}_s"]
    row["ratio"] = row["stock_s"] / row["ours_s"]
    return row


def header() -> str:
    return f"{'evaluation of a dataset, files to AP':54}" + "".join(f"{name + ' s':>12}" for name in _NAMES)


def line(row: dict) -> str:
    """A row of `measure_dataset` as text."""
    what = f"{row['model']}, {row['images']} images of {row['dataset']}"
    seconds = "".join(f"{row[f'{name}_s']:12.1f}" for name in _NAMES)
    speed = ", ".join(f"{row[f'{name}_images_per_s']:.2f}" for name in _NAMES)
    scores = [
        f"{task} {row[f'stock_{task}_ap']:.2f}, {row[f'ours_{task}_ap']:.2f}"
        for task in _TASKS
        if f"stock_{task}_ap" in row
    ]
    return f"{what:54}{seconds}   {row['ratio']:.2f}x   {speed} images/s   AP {'; '.join(scores)}"


def _has(cfg, metadata) -> tuple[bool, bool, bool]:
    return True, cfg.MODEL.MASK_ON, bool(cfg.MODEL.KEYPOINT_ON and metadata.get("keypoint_names"))


@contextlib.contextmanager
def part_of(dataset: str, num_images: int) -> Iterator[str]:
    """A dataset of some of another's images, registered while it is needed."""
    if dataset not in DatasetCatalog.list():
        raise UserError(f"evaluation needs a registered dataset (--dataset), got {dataset!r}")
    records = DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    if not metadata.get("json_file"):
        raise UserError(f"dataset {dataset}: its metadata name no json_file, COCO's annotations")
    records = thin_out(records, num_images)
    chosen = {record["image_id"] for record in records}
    truth = json.loads(Path(metadata.json_file).read_text())
    truth["images"] = [image for image in truth["images"] if image["id"] in chosen]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] in chosen]
    name = f"{dataset}_{len(records)}_images"
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "annotations.json")
        Path(file).write_text(json.dumps(truth))
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            **{key: value for key, value in metadata.as_dict().items() if key not in ("name", "json_file")},
            json_file=file,
        )
        try:
            yield name
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
