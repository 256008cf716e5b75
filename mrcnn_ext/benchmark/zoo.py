"""The table of the zoo: what each config costs, and what the paper's model of it reached."""

import csv
import gc
import os
import platform
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..config_files import list_configs
from ..model_zoo import get_config
from .model import Case, Subject, measure
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
_SIZE = (800, 1216)
_DETECTIONS = 100


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
    subject = _subject(name)
    parameters = sum(p.numel() for p in subject.stock.parameters()) / 1e6
    inputs = subject.inputs(Case(height=_SIZE[0], width=_SIZE[1]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.stock(inputs)
    return {"config": name, "parameters": parameters, "gmacs": counter.get_total_flops() / 2e9}


def measure_zoo(names: list[str], file: Path, budget: float, threads: int, times: bool = True) -> list[dict]:
    """A row for each config, written to a CSV file as they come; rows that the file has are kept.

    Args:
        names: of configs.
        file: CSV, made if it is not there.
        budget: seconds for each config's times, about.
        threads: of the CPU.
        times: measure stock and accelerated, too.
    """
    rows = {row["config"]: row for row in _read(file)}
    for name in names:
        row = rows.get(name, {})
        if "gmacs" not in row:
            row = cost(name)
        if times and not row.get("ratio"):
            case = Case(height=_SIZE[0], width=_SIZE[1], instances=_DETECTIONS)
            measured = measure(_subject(name), case, budget, threads)
            row |= {
                key: measured[key] for key in ("stock_ms", "ours_ms", "ratio", "stock_mb", "ours_mb", "bf16")
            }
            row |= {"threads": threads, "processor": _processor()}
        rows[name] = row
        write_csv(list(rows.values()), file)  # now: a later one may fail
        gc.collect()
    return [rows[name] for name in names]


def markdown(rows: list[dict], command: str) -> str:
    """MODEL_ZOO.md.

    Args:
        rows: of `measure_zoo`.
        command: that wrote it.
    """
    timed = next((row for row in rows if row.get("ratio")), None)
    lines = [
        "# Model zoo",
        "",
        f"Written by `{command}`.",
        "",
        "Every config comes as yaml and as LazyConfig (`.py`); `mrcnn-ext zoo show NAME` prints it. Training is",
        "`mrcnn-ext train model=NAME data=coco` (or `data=cityscapes`). Nobody has trained these models with this",
        "package yet: the last column is what the paper reports for its own, on COCO minival or Cityscapes val.",
        "detectron2's trained models load into those of the same architecture (`mrcnn-ext zoo list --detectron2`),",
        "torchvision's into `*_torchvision`.",
        "",
        "Parameters are in millions, multiply-adds in billions for an image of 800x1216 pixels, with as many",
        f"detections, up to {_DETECTIONS}, as random weights give.",
    ]
    if timed:
        precision = "bf16" if str(timed.get("bf16")) == "True" else "float32"
        lines += [
            f"Milliseconds an image and peak MB: batch 1, up to {_DETECTIONS} detections, random weights, "
            f"{timed['threads']} threads of an {timed['processor']}; detectron2 in float32 and "
            f"`mrcnn_ext.accelerate` in {precision}, in turns in one process.",
        ]
    names = ["config", "parameters", "multiply-adds"]
    if timed:
        names += ["detectron2 ms", "accelerated ms", "ratio", "MB, detectron2 / accelerated"]
    names += ["AP of the paper"]
    lines += ["", _row(names), _row(["---"] * len(names))]
    for row in rows:
        cells = [row["config"], f"{float(row['parameters']):.1f}", f"{float(row['gmacs']):.0f}"]
        if timed:
            cells += _times(row) if row.get("ratio") else [""] * 4
        lines.append(_row([*cells, PAPER.get(row["config"], "")]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _times(row: dict) -> list[str]:
    memory = f"{float(row['stock_mb']):.0f} / {float(row['ours_mb']):.0f}"
    return [
        f"{float(row['stock_ms']):.0f}",
        f"{float(row['ours_ms']):.0f}",
        f"{float(row['ratio']):.1f}x",
        memory,
    ]


def _subject(name: str) -> Subject:
    options = ["MODEL.TIMM.PRETRAINED", False]
    if get_config(f"{name}.yaml").MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        raise ValueError(f"{name}: only R-CNNs are measured")
    return Subject(f"{name}.yaml", opts=options)


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
