"""A detector in everything that a user could run it with, each in a process of its own: thread pools of two libraries
in one process disturb each other."""

import contextlib
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from ..accel.cpu_features import cpu_has_bf16, int8_kernels_are_available
from ..accel.int8 import state_digest
from ..export.files import onnx_file
from ..export.openvino_files import openvino_files
from ..layers import LazyMasks
from .agreement import agreement
from .model import Case, Subject, limit_detections, random_picture, score_for
from .onnxruntime_int8 import quantized_by_onnxruntime

__all__ = [
    "LIMIT",
    "PAUSE",
    "PEERS",
    "Peer",
    "Process",
    "detections",
    "header",
    "line",
    "measure",
    "missing",
    "plot",
    "prepare",
]

_CALIBRATED_WITH = 64  # images of a dataset, or
_PICTURES = 4  # random pictures
PAUSE = 0.5  # seconds before a block, in which the threads of the process before fall asleep
LIMIT = 900.0  # seconds until a process has to be ready: torch.compile takes minutes
_SINGLE = 1.0  # seconds from which on a block is a single call


@dataclass(frozen=True)
class Peer:
    """A row of the table.

    Attributes:
        library: that runs the detector, "ours" or "stock".
        precision: "float32", "bf16" or "int8".
        packages: that have to be installed.
        suffix: of the exported file that it runs, if it does.
    """

    library: str
    precision: str
    packages: tuple[str, ...] = ()
    suffix: str = ""

    def __str__(self) -> str:
        return f"{self.library} {self.precision}"


_OPENVINO = ("onnx", "openvino")
PEERS = {
    "stock": Peer("stock", "float32"),
    "compile": Peer("torch.compile", "float32"),
    "onnxruntime": Peer("onnxruntime", "float32", ("onnx", "onnxruntime"), "float32.onnx"),
    "onnxruntime_int8": Peer("onnxruntime", "int8", ("onnx", "onnxruntime"), "int8.onnx"),
    "openvino": Peer("OpenVINO", "float32", _OPENVINO, "float32.xml"),
    "openvino_bf16": Peer("OpenVINO", "bf16", _OPENVINO, "bfloat16.xml"),
    "openvino_int8": Peer("OpenVINO", "int8", (*_OPENVINO, "nncf"), "int8.xml"),
    "ours": Peer("ours", "float32"),
    "ours_bf16": Peer("ours", "bf16"),
    "ours_int8": Peer("ours", "int8"),
}


def missing(peer: Peer) -> str | None:
    """Why a row cannot be measured here; None if it can."""
    for package in peer.packages:
        try:
            version(package)
        except PackageNotFoundError:
            return f"{package} is not installed (pip install {package})"
    if peer.library == "ours" and peer.precision == "bf16" and not cpu_has_bf16():
        return "this processor has no bf16 instructions"
    if peer.library == "ours" and peer.precision == "int8" and not int8_kernels_are_available():
        return "there are no int8 kernels for this processor, or they are not compiled"
    return None


def prepare(subject: Subject, case: Case, folder: Path, peers: Sequence[str], calibrate: str = "") -> None:
    """Writes what the processes need to a folder: config, weights, images, and the exported files. What is there of an
    earlier call for the same model is left; OpenVINO's int8 file takes minutes.

    Args:
        subject: its stock model.
        case: the image and the number of detections that are measured.
        peers: names in `PEERS`.
        calibrate: a registered dataset to calibrate int8 with. "": random pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not of random weights, whose statistics of a picture are rounded otherwise on other numbers of threads.
    weights = state_digest(subject.stock) if subject.weights else "random"
    key = {
        "config": subject.cfg.dump(),
        "weights": weights,
        "case": str(case),
        "min_score": subject.min_score,
    }
    key |= {"dataset": subject.dataset, "calibrate": calibrate, "torch": version("torch")}
    key = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    if not (folder / "key").is_file() or (folder / "key").read_text() != key:
        for file in folder.iterdir():
            file.unlink()
        inputs = subject.inputs(case)
        min_score = subject.min_score or score_for(subject.stock, inputs, case.instances)
        torch.save(subject.stock.state_dict(), folder / "model.pth")
        (folder / "config.yaml").write_text(subject.cfg.dump())
        pictures = _calibration_pictures(subject, case, calibrate)
        torch.save({"image": inputs[0]["image"], "calibration": pictures}, folder / "images.pth")
        settings = {"instances": case.instances, "min_score": min_score}
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "key").write_text(key)
    wanted = {PEERS[name].suffix for name in peers} - {""}
    if all((folder / name).is_file() for name in wanted):
        return
    settings = json.loads((folder / "settings.json").read_text())
    DetectionCheckpointer(subject.stock).load(str(folder / "model.pth"))
    limit_detections(subject.stock, settings["instances"], settings["min_score"])
    file, about = onnx_file(subject.stock)
    (folder / "float32.onnx").write_bytes(file)
    for name in sorted(wanted):
        precision, suffix = name.split(".")
        if (folder / name).is_file():
            continue
        pictures = torch.load(folder / "images.pth")["calibration"] if precision == "int8" else ()
        if suffix == "onnx":
            (folder / name).write_bytes(quantized_by_onnxruntime(file, pictures))
            continue
        for ending, content in openvino_files(file, {**about, "precision": precision}, pictures).items():
            (folder / f"{precision}{ending}").write_bytes(content)


def _calibration_pictures(subject, case, dataset) -> list[torch.Tensor]:
    """As the model is given them."""
    if not dataset:
        return [random_picture((case.height, case.width), 100 + seed) for seed in range(_PICTURES)]
    from detectron2.data import DatasetMapper

    from ..engine.trainer import thin_out

    mapper = DatasetMapper(subject.cfg, is_train=False)
    return [mapper(record)["image"] for record in thin_out(DatasetCatalog.get(dataset), _CALIBRATED_WITH)]


class Process:
    """A peer in its process, see `peer_process`."""

    def __init__(
        self,
        name: str,
        folder: Path,
        threads: int,
        dataset: str = "",
        images: int = 0,
        workers: int = 1,
        limit: float = LIMIT,
    ):
        self.name = name
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "mrcnn_ext.benchmark.peer_process", str(folder), name, str(threads)]
        command += ["--workers", str(workers)] if workers > 1 else []
        command += ["--evaluate", dataset, str(images)] if images else []
        self._log = folder / f"{name}.log"
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._limit = limit
        self._is_late = False
        late = threading.Timer(limit, self._kill_late)
        late.start()
        try:
            self.about = self._answer()
        finally:
            late.cancel()

    def _kill_late(self):
        self._is_late = True
        self._process.kill()

    def seconds(self, calls: int) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if text.startswith("answer "):  # libraries print, too
                return json.loads(text.removeprefix("answer "))
        code = self._process.wait()
        if self._is_late:
            raise RuntimeError(f"the process of {PEERS[self.name]} was not ready within {self._limit:.0f} s")
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        end = self._log.read_text().strip().splitlines()
        raise RuntimeError(
            f"the process of {PEERS[self.name]} ended {how}: {end[-1] if end else 'it said nothing'}; see {self._log}"
        )

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def _processes(
    folder, peers, threads, dataset, images, limit, tell
) -> Iterator[tuple[dict[str, Process], dict[str, str]]]:
    """One after the other: while one is prepared the others wait for their turn. And why others are not running."""
    running: dict[str, Process] = {}
    why_not: dict[str, str] = {}
    try:
        for name in peers:
            start = time.perf_counter()
            try:
                running[name] = Process(name, folder, threads, dataset, images, limit=limit)
            except RuntimeError as error:
                why_not[name] = str(error)
                tell(str(error))
                continue
            tell(f"{PEERS[name]}: ready after {time.perf_counter() - start:.0f} s")
        yield running, why_not
    finally:
        for process in running.values():
            process.end()


def measure(
    subject: Subject,
    case: Case,
    folder: Path,
    peers: Sequence[str],
    threads: int,
    rounds: int,
    images: int = 0,
    tell: Callable[[str], None] = print,
    ready: Callable[[], None] = lambda: None,
    limit: float = LIMIT,
) -> list[dict]:
    """Rows of a prepared folder. The peers take turns in blocks of a second or one call, a pause before each. Of a peer
    whose process ended, or was not ready in time, the row says so.

    Args:
        subject: as of `prepare`.
        rounds: blocks of each.
        images: evaluate so many images of the subject's dataset with each peer, too.
        tell: is given what happens.
        ready: is called when all processes are, before times are taken.
        limit: seconds that a process may take until it is ready, the first calls among them.
    """
    times: dict[str, list[float]] = {}
    with _processes(folder, peers, threads, subject.dataset, images, limit, tell) as (processes, why_not):
        ready()
        for round_ in range(rounds):
            for name, process in processes.items():
                time.sleep(PAUSE)
                calls = 2
                if round_:
                    calls = max(1, min(8, int(_SINGLE / statistics.median(times[name]))))
                elif process.about["first_s"] > _SINGLE:
                    calls = 1
                times.setdefault(name, []).extend(process.seconds(calls))
        found = {name: detections(folder, name) for name in processes}
        about = {name: process.about for name, process in processes.items()}
    rows: list[dict] = []
    for name in peers:
        peer = PEERS[name]
        row = {"model": subject.name, "weights": subject.weights or "random", "peer": name}
        row |= {"library": peer.library, "precision": peer.precision}
        row |= {"height": case.height, "width": case.width, "threads": threads}
        rows.append(row)
        if name in why_not:
            row["why_not"] = why_not[name]
            continue
        seconds = times[name]
        row["version"] = about[name]["version"]
        row |= {
            "ms": 1000 * statistics.median(seconds),
            "least_ms": 1000 * min(seconds),
            "runs": len(seconds),
        }
        row["detections"] = len(found[name])
        if "stock" in found:
            row["stock_ratio"] = statistics.median(times["stock"]) / statistics.median(seconds)
            same = agreement([found["stock"]], [found[name]])
            row |= {
                key: same[key]
                for key in ("matched", "box_px", "score", "mask_iou_mean", "keypoint_px_median")
            }
        row |= {f"{task}_ap": value for task, value in about[name].get("ap", {}).items()}
    _add_ratios(rows)
    return rows


def _add_ratios(rows):
    """Of ours, to each other library's best row of the same precision."""
    rows = [row for row in rows if "ms" in row]
    for row in rows:
        beside = [
            other["ms"]
            for other in rows
            if other["precision"] == row["precision"] and other["library"] != "ours"
        ]
        if row["library"] == "ours" and beside:
            row["peer_ratio"] = min(beside) / row["ms"]


def detections(folder: Path, name: str) -> Instances:
    """What the process of a peer found."""
    found = torch.load(folder / f"{name}.detections.pth")
    size = tuple(found["size"].tolist())
    boxes = found["boxes"]
    instances = Instances(size, pred_boxes=Boxes(boxes))
    instances.scores, instances.pred_classes = found["scores"], found["classes"]
    if "masks" in found:
        instances.pred_masks = LazyMasks(found["masks"].float(), boxes, size)
    if "keypoints" in found:
        instances.pred_keypoints = found["keypoints"]
    return instances


def header() -> str:
    return f"{'':26}{'ms (least)':>16}{'x stock':>9}{'x best peer':>13}   beside stock"


def line(row: dict) -> str:
    """A row as text."""
    if "ms" not in row:
        return f"{row['library'] + ' ' + row['precision']:26}{'none':>16}{'':22}   {row['why_not']}"
    milliseconds = f"{row['ms']:.0f} ({row['least_ms']:.0f})"
    ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("stock_ratio", "peer_ratio")]
    text = f"{row['library'] + ' ' + row['precision']:26}{milliseconds:>16}{ratios[0]:>9}{ratios[1]:>13}   "
    return text + _beside(row)


def _beside(row) -> str:
    parts = [f"{row['detections']} detections"]
    if "matched" in row:
        parts[0] += f", {row['matched']:.0%} the same"
        if row["box_px"] == row["box_px"]:
            parts.append(f"boxes within {row['box_px']:.2g} px")
        if row["mask_iou_mean"] == row["mask_iou_mean"]:
            parts.append(f"mask IoU {row['mask_iou_mean']:.3f}")
        if row["keypoint_px_median"] == row["keypoint_px_median"]:
            parts.append(f"keypoints {row['keypoint_px_median']:.2g} px")
    parts += [f"{key[:-3]} AP {value:.2f}" for key, value in row.items() if key.endswith("_ap")]
    return "; ".join(parts)


def plot(rows: list[dict], path: Path) -> None:
    """Milliseconds of every row that has them."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if "ms" in row]

    colours = {"float32": "C0", "bf16": "C1", "int8": "C2"}
    figure = Figure(figsize=(10, 1.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ours = row["library"] == "ours"
        axes.barh(
            -place, row["ms"], color=colours[row["precision"]], alpha=1 if ours else 0.45, edgecolor="black"
        )
        ratio = f"  ({row['stock_ratio']:.1f}x stock)" if "stock_ratio" in row else ""
        axes.text(row["ms"], -place, f" {row['ms']:.0f}{ratio}", va="center", fontsize="small")
    labels = [
        f"{row['model']}, {row['library']} {row['precision']}".replace("mask_rcnn", "Mask R-CNN")
        for row in rows
    ]
    axes.set(xlabel="milliseconds an image", yticks=[-i for i in range(len(rows))], yticklabels=labels)
    axes.margins(x=0.2)
    first = rows[0]
    figure.suptitle(f"{first['height']} x {first['width']}, {first['threads']} thread(s)")
    figure.savefig(path, dpi=110)
