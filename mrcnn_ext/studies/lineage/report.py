"""The table, the plot and the pictures of the lineage."""

import json
from pathlib import Path
from statistics import mean

import cv2
import numpy as np
import pycocotools.mask as mask_util
from matplotlib.figure import Figure
from pycocotools.coco import COCO

from ...scenes.preview import contact_sheet, draw_annotations
from .steps import Lineage

__all__ = ["STAGES", "averages", "checks", "lineage_figure", "lineage_table", "step_sheet"]

STAGES = ("proposals", "CNN", "heads")
_COLORS = {"proposals": "#f59e0b", "CNN": "#2563eb", "heads": "#c026d3"}
# Legends: above the bars, whose labels they would cover.
_BELOW = {"fontsize": 8, "frameon": False, "loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
_METRICS = {"bbox/AP": "box AP", "bbox/AP50": "AP50", "segm/AP": "mask AP", "segm/AP75": "mask AP75"}


def averages(results: list[dict], search_seconds: float | None) -> dict:
    """A step over its seeds.

    Args:
        results: as of `train_step`, one for each seed.
        search_seconds: of selective search for an image, for a step without ``proposals`` of its own.
    """
    seconds = {stage: mean(r["seconds"][stage] for r in results) for stage in results[0]["seconds"]}
    if "proposals" not in seconds and search_seconds is not None:
        seconds["proposals"] = search_seconds
    metrics = {key: mean(r["metrics"][key] for r in results) for key in results[0]["metrics"]}
    others = {
        key: mean(r[key] for r in results)
        for key in ("parameters", "proposals", "train_seconds", "iterations")
    }
    return {"metrics": metrics, "seconds": seconds, "seeds": len(results), **others}


def lineage_table(lineage: Lineage, rows: dict[str, dict]) -> str:
    """Markdown; a row for each step that has results.

    Args:
        lineage: the study.
        rows: by name of the step, as of `averages`.
    """
    head = [
        "",
        *_METRICS.values(),
        *(f"{stage}, ms" for stage in STAGES),
        "all, ms",
        "proposals",
        "parameters",
    ]
    lines = [head + ["training"], ["---"] * (len(head) + 1)]
    for name, step in lineage.steps.items():
        if name not in rows:
            continue
        row = rows[name]
        seconds = [row["seconds"].get(stage, float("nan")) for stage in STAGES]
        lines.append(
            [
                step.title,
                *(f"{row['metrics'][key]:.1f}" if key in row["metrics"] else "–" for key in _METRICS),
                *(f"{1e3 * value:.1f}" for value in (*seconds, sum(seconds))),
                f"{row['proposals']:.0f}",
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['iterations']:.0f} iterations, {row['train_seconds']:.0f} s",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def checks(rows: dict[str, dict]) -> list[str]:
    """What each step is expected to buy, and how it came out."""
    lines = []

    def pair(before, after):
        return before in rows and after in rows

    if pair("rcnn_R_50", "fast_rcnn_R_50"):
        ratio = rows["rcnn_R_50"]["seconds"]["CNN"] / rows["fast_rcnn_R_50"]["seconds"]["CNN"]
        lines.append(f"Fast R-CNN's CNN takes 1/{ratio:.0f} of the time of R-CNN's (expected: 1/10 or less)")
    if pair("fast_rcnn_R_50", "faster_rcnn_R_50"):
        before, after = (rows[k]["seconds"].get("proposals") for k in ("fast_rcnn_R_50", "faster_rcnn_R_50"))
        if before is not None:
            lines.append(
                f"Faster R-CNN's proposals take {1e3 * after:.1f} ms where selective search took {1e3 * before:.0f} ms "
                "(expected: less)"
            )
    for before, after, metric in (
        ("faster_rcnn_R_50", "faster_rcnn_R_50_FPN", "bbox/AP"),
        ("mask_rcnn_R_50_FPN_ROIPool", "mask_rcnn_R_50_FPN", "segm/AP75"),
    ):
        if pair(before, after):
            margin = rows[after]["metrics"][metric] - rows[before]["metrics"][metric]
            lines.append(f"{after} over {before}: {metric} {margin:+.1f} (expected: more)")
    return lines


def lineage_figure(lineage: Lineage, rows: dict[str, dict]) -> Figure:
    """Seconds of each stage, on a logarithmic axis, and AP, step by step."""
    names = [name for name in lineage.steps if name in rows]
    titles = [lineage.steps[name].title for name in names]
    figure = Figure(figsize=(11, 0.75 * len(names) + 1.2), layout="constrained")
    times, points = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    places = np.arange(len(names))[::-1]
    for k, stage in enumerate(STAGES):
        values = [1e3 * rows[name]["seconds"].get(stage, float("nan")) for name in names]
        bars = times.barh(places + 0.25 * (1 - k), values, 0.23, color=_COLORS[stage], label=stage)
        times.bar_label(bars, [f"{v:.3g}" if v == v else "" for v in values], padding=2, fontsize=7.5)
    times.set(xscale="log", xlabel="processor's milliseconds an image", yticks=places, yticklabels=titles)
    times.set_xlim(right=times.get_xlim()[1] * 2)
    times.legend(**_BELOW)
    for k, (metric, color) in enumerate(
        (("bbox/AP", "#16a34a"), ("segm/AP", "#dc2626"), ("segm/AP75", "#fb923c"))
    ):
        values = [rows[name]["metrics"].get(metric, float("nan")) for name in names]
        bars = points.barh(places + 0.25 * (1 - k), values, 0.23, color=color, label=_METRICS[metric])
        points.bar_label(bars, [f"{v:.1f}" if v == v else "" for v in values], padding=2, fontsize=7.5)
    points.set_xlabel("AP")
    points.set_xlim(right=points.get_xlim()[1] * 1.2)
    points.legend(**_BELOW)
    for axes in (times, points):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    return figure


def step_sheet(lineage: Lineage, output: Path, seed: int, scene: int, threshold: float = 0.5) -> np.ndarray:
    """One validation scene with the ground truth, and with what each step finds in it.

    Args:
        lineage: the study.
        output: its folder.
        seed: of the trainings.
        scene: number among the validation scenes.
        threshold: least score.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    truth = COCO(str(output / "scenes" / "annotations" / "instances_val.json"))
    image = truth.imgs[sorted(truth.imgs)[scene]]
    pixels = cv2.imread(str(output / "scenes" / image["file_name"]))[:, :, ::-1]
    panels = [("ground truth", truth.imgToAnns[image["id"]])]
    for name, step in lineage.steps.items():
        files = list((output / name / f"seed{seed}" / "inference").rglob("coco_instances_results.json"))
        if files:
            records = json.loads(files[0].read_text())
            panels.append(
                (step.title, [r for r in records if r["image_id"] == image["id"] and r["score"] >= threshold])
            )
    pictures = []
    for title, annotations in panels:
        drawn = draw_annotations(pixels, [_drawable(a, *pixels.shape[:2]) for a in annotations], scale=2)
        strip = np.full((22, drawn.shape[1], 3), 255, np.uint8)
        cv2.putText(strip, title, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        pictures.append(np.concatenate([strip, drawn]))
    return contact_sheet(pictures, columns=3)


def _drawable(annotation, height, width):
    """Without keypoints; of a box without a mask the empty one."""
    nothing = mask_util.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    return {"segmentation": nothing, "iscrowd": 0, **annotation, "keypoints": [0] * 51}
