"""The process of one row of `peers`.

``python -m mrcnn_ext.benchmark.peer_process FOLDER NAME THREADS [--workers N] [--evaluate DATASET IMAGES]`` writes
NAME.detections.pth to the folder and then a line, "answer" and JSON, on what it is; then, for each line with a number
that it reads, the seconds of so many calls, or with several workers those of all together.
"""

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from torch import nn

from .. import __version__
from ..engine.setup import load_config
from ..engine.trainer import thin_out
from ..evaluation import COCOEvaluator
from ..export import ExportedModel
from ..modeling import accelerate
from .model import limit_detections
from .peers import PEERS, Peer
from .throughput import part_of

_FIELDS = {"masks": "pred_masks", "keypoints": "pred_keypoints"}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", choices=PEERS)
    parser.add_argument("threads", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--evaluate", nargs=2, metavar=("DATASET", "IMAGES"))
    options = parser.parse_args(arguments)
    folder, name = options.folder, options.name
    torch.set_num_threads(options.threads)
    stream = sys.stdout
    sys.stdout = sys.stderr  # what libraries print
    row = _Row(folder, PEERS[name], options.threads, options.workers)
    start = time.perf_counter()
    found = row.detect()
    first = time.perf_counter() - start
    if PEERS[name].library == "torch.compile":  # the call before compiled
        start = time.perf_counter()
        row.detect()
        first = time.perf_counter() - start
    about = {"version": row.version, "first_s": first}
    if options.evaluate:
        about["ap"] = row.average_precision(options.evaluate[0], int(options.evaluate[1]))
    with _Workers(options.workers, options.threads) as workers:
        if options.workers > 1:  # what they find, together, is compared
            found = max(workers.run(row.detect, options.workers), key=lambda other: _difference(found, other))
        torch.save(found, folder / f"{name}.detections.pth")
        print("answer", json.dumps(about), file=stream, flush=True)
        for calls in sys.stdin:
            print("answer", json.dumps(workers.seconds(row.run, int(calls))), file=stream, flush=True)


def _difference(found, other) -> float:
    """Of two detections of an image, in pixels; infinite if they are not as many."""
    if found["boxes"].shape != other["boxes"].shape:
        return float("inf")
    return (found["boxes"] - other["boxes"]).abs().sum().item()


class _Workers:
    """Threads that call a function at once, each with its share of the threads that compute.

    Args:
        workers: so many; one calls it where it is.
        threads: that compute, of all together.
    """

    def __init__(self, workers: int, threads: int):
        self._pool = None
        if workers > 1:
            share = max(1, threads // workers)
            self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._pool is not None:
            self._pool.shutdown()

    def run(self, function: Callable, calls: int) -> list:
        """What so many calls return."""
        if self._pool is None:
            return [function() for _ in range(calls)]
        return list(self._pool.map(lambda _: function(), range(calls)))

    def seconds(self, function: Callable, calls: int) -> list[float]:
        """Of each of so many calls; of several workers, of all together."""
        if self._pool is None:
            return [_seconds(function) for _ in range(calls)]
        return [_seconds(partial(self.run, function, calls))]


def _seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class _Row:
    """A detector of an image, masks not pasted.

    Args:
        folder: of `peers.prepare`.
        threads: that compute.
        workers: that will call it at once.
    """

    def __init__(self, folder: Path, peer: Peer, threads: int, workers: int = 1):
        self.folder, self.peer = folder, peer
        pictures = torch.load(folder / "images.pth")
        self.image, self.calibration = pictures["image"], pictures["calibration"]
        self.cfg = load_config(str(folder / "config.yaml"))
        self.model: nn.Module | ExportedModel
        if peer.suffix:
            self.model = ExportedModel(folder / peer.suffix, threads=threads, streams=workers)
            self.run = partial(self.model.detect, self.image)
            self.version = f"{peer.packages[1]} {version(peer.packages[1])}"
            return
        self.version = (
            f"mrcnn_ext {__version__}" if peer.library == "ours" else f"PyTorch {torch.__version__}"
        )
        self.model = self._make()
        if peer.library == "torch.compile":
            _compile(self.model)

        def run():
            with torch.no_grad():
                return self.model.inference([{"image": self.image}], do_postprocess=False)

        self.run = run

    def _make(self) -> nn.Module:
        settings = json.loads((self.folder / "settings.json").read_text())
        self.cfg.MODEL.WEIGHTS = str(self.folder / "model.pth")
        model = build_model(self.cfg).eval()
        DetectionCheckpointer(model).load(self.cfg.MODEL.WEIGHTS)
        limit_detections(model, settings["instances"], settings["min_score"])
        if self.peer.library != "ours":
            return model
        int8 = None
        if self.peer.precision == "int8":
            int8 = [[{"image": picture}] for picture in self.calibration]
        model = accelerate(
            model,
            copy=False,
            training=False,
            bf16=False if self.peer.precision == "float32" else "auto",
            masks="auto",
            int8=int8,
        )
        print(model.acceleration, int8 and model.acceleration.int8)
        return model

    def detect(self) -> dict[str, torch.Tensor]:
        """The detections, as `ExportedModel.detect` gives them."""
        found = self.run()
        size = {"size": torch.tensor(self.image.shape[1:])}
        if self.peer.suffix:
            return {**found, **size}
        (instances,) = found
        result = {"boxes": instances.pred_boxes.tensor, "scores": instances.scores, **size}
        result["classes"] = instances.pred_classes
        result |= {name: instances.get(field) for name, field in _FIELDS.items() if instances.has(field)}
        return result

    def average_precision(self, dataset: str, images: int) -> dict[str, float]:
        """Of boxes, masks and keypoints on some images of a dataset."""
        cfg = self.cfg
        tasks = [
            "bbox",
            *(["segm"] if cfg.MODEL.MASK_ON else []),
            *(["keypoints"] if cfg.MODEL.KEYPOINT_ON else []),
        ]
        with part_of(dataset, images) as name, contextlib.redirect_stdout(io.StringIO()):
            records = thin_out(DatasetCatalog.get(name), images)
            loader = build_detection_test_loader(
                records, mapper=DatasetMapper(cfg, is_train=False), num_workers=0
            )
            sigmas = MetadataCatalog.get(name).get("keypoint_oks_sigmas", cfg.TEST.KEYPOINT_OKS_SIGMAS)
            evaluator = COCOEvaluator(name, tuple(tasks), kpt_oks_sigmas=sigmas, distributed=False)
            found = inference_on_dataset(_Callable(self.model).eval(), loader, evaluator)
        return {task: found[task]["AP"] for task in tasks}


def _compile(model: nn.Module) -> None:
    """The networks, their weights taken for constants. What lies between them breaks graphs, and takes minutes."""
    heads = model.roi_heads
    networks = [model.backbone, model.proposal_generator.rpn_head]
    networks += [
        getattr(heads, name) for name in ("box_head", "mask_head", "keypoint_head") if hasattr(heads, name)
    ]
    for network in networks:
        network.compile(options={"freezing": True})


class _Callable(nn.Module):
    """An exported or other detector as ``inference_on_dataset`` takes it."""

    def __init__(self, model):
        super().__init__()
        self.call = model

    def forward(self, inputs):
        return self.call(inputs)


if __name__ == "__main__":
    main(sys.argv[1:])
