"""What a training run shows a person: curves, a table, and predictions beside the ground truth.

Reads files in COCO's formats and detectron2's ``metrics.json``, whichever program wrote them.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools.coco import COCO

from ..reports import TrainingHistory, match_detections, threshold_curves
from ..reports.figures import training_figure
from ..scenes.preview import contact_sheet, draw_annotations

__all__ = ["best_thresholds", "metrics_table", "plot_metrics", "prediction_sheet"]

_TASKS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


def metrics_table(runs: dict[str, dict]) -> str:
    """
    Args:
        runs: name of each run -> its summary: {"coco": {"bbox": {"AP", "AP50"}, "segm": ..., "keypoints": ...},
            "cityscapes": {"AP", "AP50"}, "iterations", "train_seconds"}; AP in points.

    Returns:
        str: a table in Markdown, one row a run.
    """
    columns = [f"{name} {metric}" for name in (*_TASKS.values(), "Cityscapes") for metric in ("AP", "AP50")]
    rows = [["", "iterations", "training", *columns], ["---"] * (len(columns) + 3)]
    for run, summary in runs.items():
        parts = [*(summary["coco"][task] for task in _TASKS), summary["cityscapes"]]
        points = [f"{part[metric]:.1f}" for part in parts for metric in ("AP", "AP50")]
        rows.append([run, str(summary["iterations"]), f"{summary['train_seconds']:.0f} s", *points])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"| {line} |" for line in lines)


def plot_metrics(metrics_file, output_file, title: str = "") -> None:
    """Draws training losses, validation losses and AP over the iterations.

    Args:
        metrics_file: JSON lines with ``iteration``, ``loss_*``, ``total_loss``, the same behind ``val/`` and
            ``<dataset>/<task>/AP`` or ``<task>/AP``, as detectron2's JSONWriter writes them.
        output_file: picture to write, its format by its ending.
        title: over the picture.
    """
    training_figure(TrainingHistory.read(metrics_file), title).savefig(output_file, dpi=120)


def best_thresholds(annotation_file, results_file) -> dict[str, float]:
    """For each class the score from which its predictions have the best F1, their boxes judged at an IoU of 0.5.

    Args:
        annotation_file: COCO annotations.
        results_file: COCO results.

    Returns:
        dict: threshold by the name of the class. 0.5 for a class of which no object was found.
    """
    truth = COCO(annotation_file)
    matches = match_detections(
        list(truth.anns.values()),
        json.loads(Path(results_file).read_text()),
        list(truth.cats),
        score_threshold=0,
    )
    # What lies in a crowd's region is in neither.
    right = [(record, True) for _, record in matches.pairs]
    judged = [*right, *((alarm.detection, False) for alarm in matches.false_alarms)]
    thresholds = {}
    for category, about in truth.cats.items():
        of_class = [
            (record["score"], correct) for record, correct in judged if record["category_id"] == category
        ]
        scores, correct = zip(*of_class, strict=True) if of_class else ((), ())
        objects = sum(a["category_id"] == category and not a.get("iscrowd") for a in truth.anns.values())
        best, _ = threshold_curves(scores, correct, objects).best
        thresholds[about["name"]] = best if any(correct) else 0.5
    return thresholds


def prediction_sheet(
    annotation_file,
    results_file,
    image_root,
    output_file,
    thresholds: dict[str, float],
    num_images: int = 8,
) -> None:
    """Draws scenes with their ground truth, each beside what was predicted for it.

    Args:
        annotation_file: COCO annotations of scenes.
        results_file: COCO results; one record has box, mask and keypoints together, as detectron2's are.
        image_root: folder that the file names start from.
        output_file: picture to write.
        thresholds: of each class, by its name; predictions with lower scores are left out.
        num_images: scenes on the sheet, evenly spaced over those with an object.
    """
    truth = COCO(annotation_file)
    with_keypoints = {cat["id"] for cat in truth.cats.values() if cat.get("keypoints")}
    predictions = {}
    for record in json.loads(Path(results_file).read_text()):
        if record["score"] >= thresholds[truth.cats[record["category_id"]]["name"]]:
            predictions.setdefault(record["image_id"], []).append(_as_annotation(record, with_keypoints))
    images = [image for image in truth.imgs.values() if truth.imgToAnns[image["id"]]]
    images = images[:: max(1, len(images) // num_images)][:num_images]
    pictures = []
    for image in images:
        pixels = cv2.imread(str(Path(image_root, image["file_name"])))[:, :, ::-1]
        for annotations in (truth.imgToAnns[image["id"]], predictions.get(image["id"], [])):
            pictures.append(draw_annotations(pixels, annotations, scale=2))
    sheet = contact_sheet(pictures, columns=4)
    cv2.imwrite(str(output_file), sheet[:, :, ::-1])


def _as_annotation(record: dict, with_keypoints: set[int]) -> dict:
    keypoints = np.zeros((17, 3))
    if record["category_id"] in with_keypoints:
        keypoints = np.array(record["keypoints"]).reshape(-1, 3)
        keypoints[:, 2] = 2
    return {**record, "keypoints": keypoints.ravel(), "iscrowd": 0}
