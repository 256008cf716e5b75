"""The table of the zoo: what each config costs, and what the paper's model of it reached."""

import csv
import gc
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..config_files import list_configs
from ..model_zoo import get_config
from .model import Case, Subject, limit_detections, measure, score_for
from .step_profile import Operators
from .tables import write_csv

__all__ = ["PAPER", "cost", "markdown", "measure_zoo", "zoo_configs"]

# Mask R-CNN (ICCV 2017): tables 2 to 6, section 4.2, appendix A. Validation AP of the task of the table.
PAPER = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4": "mask 30.3",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4": "mask 32.7",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN": "mask 33.6",
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN": "mask 35.4",
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN": "mask 36.7 (of the 64x4d)",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_softmax": "mask 24.8",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_agnostic": "mask 29.7",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_ROIPool": "mask 26.9",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_ROIWarpMax": "mask 27.2",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_ROIWarpAvg": "mask 27.1",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_ROIAlignMax": "mask 30.2",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C5": "mask 30.9, box 34.0",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C5_ROIPool": "mask 23.6, box 28.2",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_MLP2": "mask 31.5",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_MLP3": "mask 31.5",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN": "keypoint 64.2, box 50.7",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_ROIPool": "keypoint 59.8",
    "COCO-MultiTask/faster_rcnn_R_50_FPN_person": "box 52.5",
    "COCO-MultiTask/mask_rcnn_R_50_FPN_person": "mask 45.8, box 53.6",
    "COCO-MultiTask/mask_keypoint_rcnn_R_50_FPN": "keypoint 64.7, mask 45.1, box 52.0",
    "Cityscapes/mask_rcnn_R_50_FPN": "mask 31.5",
    "Cityscapes/mask_rcnn_R_50_FPN_from_COCO": "mask 36.4",
}
_MEASURED = ("stock_ms", "ours_ms", "ratio", "stock_mb", "ours_mb", "bf16")
_SIZE = (800, 1216)
_DETECTIONS = 100
# A hundred random layers enlarge rounding: of ResNet-101-C4's 100 detections one or two are other ones with the same
# score, and the IoU of some that are a fraction of a pixel wide falls by 0.1 pixels.
_LEAST_MATCHED = 0.9


def zoo_configs() -> list[str]:
    """Names without suffix of the configs for COCO and Cityscapes."""
    names = {name.rpartition(".")[0] for name in list_configs()}
    return sorted(name for name in names if name.startswith(("COCO", "Cityscapes")))


def cost(name: str) -> dict:
    """Parameters and multiply-adds of a config's model as detectron2 runs it, random weights.

    Returns:
        "config"; "parameters", millions; "gmacs", billions of multiply-adds of convolutions and matrix products for an
        image of 800x1216 pixels with 100 detections.
    """
    subject = _subject(name, calibrated=False)
    model, inputs = subject.stock, subject.inputs(Case(height=_SIZE[0], width=_SIZE[1]))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    with torch.no_grad():
        with Operators(compute=False, random=True):
            min_score = score_for(model, inputs, _DETECTIONS)
        limit_detections(model, _DETECTIONS, min_score)
        with Operators(compute=False, random=True) as counter:
            model.inference(inputs, do_postprocess=False)
    return {"config": name, "parameters": parameters, "gmacs": float(counter.table[:, 0].sum()) / 2e9}


def measure_zoo(
    names: Sequence[str],
    file: Path,
    budget: float,
    threads: int,
    times: bool = True,
    seconds: float = math.inf,
    say: Callable[[str], None] = print,
) -> tuple[list[dict], list[str]]:
    """A row for each config, written to a CSV file as they come; what the file has is kept. So a machine that is quiet
    now and then measures the zoo in slices.

    Args:
        names: of configs.
        file: CSV, made if it is not there. Times of another processor or number of threads are taken anew.
        budget: seconds for each config's times, about.
        threads: of the CPU.
        times: measure stock and accelerated, too; otherwise the file's are kept as they are.
        seconds: after which no further config is begun.
        say: takes a line about each config that was measured.

    Returns:
        The rows of the file, of ``names`` or not, in the order of their names; and the names of those that still lack
        something.
    """
    rows = {row["config"]: row for row in _read(file)}
    here = {"threads": str(threads), "processor": _processor()}
    end, left = time.monotonic() + seconds, []
    for name in names:
        row = rows.get(name, {})
        is_timed = row.get("ratio") and all(row.get(key) == value for key, value in here.items())
        if "gmacs" in row and (is_timed or not times):
            continue
        if time.monotonic() >= end:
            left.append(name)
            continue
        if "gmacs" not in row:
            row = cost(name)
        if times and not is_timed:
            case = Case(height=_SIZE[0], width=_SIZE[1], instances=_DETECTIONS)
            try:
                measured = measure(_subject(name), case, budget, threads, True, _LEAST_MATCHED)
            except (AssertionError, RuntimeError) as error:  # the others are to be measured all the same
                say(f"{name}: not measured: {error}")
                left.append(name)
                measured = None
            if measured is not None:
                row |= {key: measured[key] for key in _MEASURED} | here
        rows[name] = row
        write_csv(list(rows.values()), file)  # now: a later one may fail
        say(f"{name}: {float(row['parameters']):.1f} M, {float(row['gmacs']):.0f} GMACs{_in_words(row)}")
        gc.collect()
    return [rows[name] for name in sorted(rows)], left


def _in_words(row):
    if not row.get("ratio"):
        return ""
    return f", {float(row['stock_ms']):.0f} ms -> {float(row['ours_ms']):.0f} ms, {float(row['ratio']):.1f}x"


def markdown(rows: list[dict], command: str) -> str:
    """MODEL_ZOO.md.

    Args:
        rows: of `measure_zoo`; configs of the zoo without one have empty cells.
        command: that wrote it.
    """
    by_name = {row["config"]: row for row in rows}
    names = zoo_configs()
    timed = [by_name[name] for name in names if by_name.get(name, {}).get("ratio")]
    lines = [
        "# Model zoo",
        "",
        f"Written by `{command}`. It goes on where it was ended; `--help` lists how to measure in slices.",
        "",
        "Every config comes as yaml and as LazyConfig (`.py`); `mrcnn-ext zoo show NAME` prints it. detectron2's",
        "trained models load into those of the same architecture (`mrcnn-ext zoo list --detectron2`), torchvision's",
        "into `*_torchvision`. The schedules are for 8 GPUs; on N of them `SOLVER.REFERENCE_WORLD_SIZE 8` (LazyConfig:",
        "`train.reference_world_size=8`) scales batch, learning rate and iterations, and says so.",
        "",
        "- parameters: millions; GMACs: billions of multiply-adds, two FLOPs each, for an image of 800x1216 pixels "
        f"with {_DETECTIONS} detections.",
        f"- ms an image and MB at most, as detectron2 runs it and by `mrcnn_ext.accelerate`: {_measured_how(timed)}",
        "- AP of the paper: what it reports for its own model, on COCO minival or Cityscapes val.",
        "- AP: of a model trained with this package. Nobody has trained these yet, so it is empty.",
        "",
        "Of our heads those have configs that are ahead of detectron2's in `tools/ablations.py`: `SimCCKeypointHead`",
        "is behind there, and `MaskScoringHead` level.",
    ]
    columns = [
        "config",
        "parameters",
        "GMACs",
        "ms",
        "accelerated",
        "MB",
        "AP of the paper",
        "AP",
        "command",
    ]
    folder = None
    for name in names:
        if name.partition("/")[0] != folder:
            folder = name.partition("/")[0]
            lines += ["", f"## {folder}", "", _row(columns), _row(["---"] * len(columns))]
        row = by_name.get(name, {})
        cells = [name.partition("/")[2], *_costs(row), *_times(row), PAPER.get(name, ""), "", _command(name)]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def _measured_how(timed: list[dict]) -> str:
    if not timed:
        return "not measured yet."
    machines = {(row["threads"], row["processor"], str(row.get("bf16"))) for row in timed}
    how = [
        f"{threads} threads of an {processor}, float32 and {'bf16' if bf16 == 'True' else 'float32'}"
        for threads, processor, bf16 in sorted(machines)
    ]
    return (
        f"batch 1, up to {_DETECTIONS} detections, random weights, in turns in one process, median of three or more; "
        f"{'; '.join(how)}. "
        "Empty: not measured yet."
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _costs(row: dict) -> list[str]:
    if "gmacs" not in row:
        return ["", ""]
    return [f"{float(row['parameters']):.1f}", f"{float(row['gmacs']):.0f}"]


def _times(row: dict) -> list[str]:
    if not row.get("ratio"):
        return [""] * 3
    return [
        f"{float(row['stock_ms']):.0f}",
        f"{float(row['ours_ms']):.0f} ({float(row['ratio']):.1f}x)",
        f"{float(row['stock_mb']):.0f} / {float(row['ours_mb']):.0f}",
    ]


def _command(name: str) -> str:
    folder, _, stem = name.partition("/")
    if folder == "Cityscapes":
        return f"`mrcnn-ext train model={name} data=cityscapes`"
    return f"`mrcnn-ext train model={stem} data=coco`"


def _subject(name: str, **kwargs) -> Subject:
    options = ["MODEL.TIMM.PRETRAINED", False]
    if get_config(f"{name}.yaml").MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ValueError(f"{name}: only R-CNNs are measured")
    return Subject(f"{name}.yaml", opts=options, **kwargs)


def _read(file: Path) -> list[dict]:
    if not file.is_file():
        return []
    with open(file, newline="") as stream:
        return [{key: value for key, value in row.items() if value != ""} for row in csv.DictReader(stream)]


def _processor() -> str:
    """Its name, without what changes from one kernel to the next."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or os.uname().machine
