"""The page of a report, from what was computed for it."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import PurePath

import jinja2

from . import figures
from .pictures import error_picture, jpeg_data_uri, read_picture

__all__ = ["render"]

_MISS_TEXTS = {
    "low score": "found, but with a score below the threshold",
    "box is off": "a box of its class lies on it, at less than IoU 0.5",
    "other class": "found as another class",
    "not seen": "nothing of its class lies on it",
}
_ALARM_TEXTS = {
    "other class": "an object of another class",
    "duplicate": "a second box on an object that was found",
    "box is off": "overlaps an object of its class, at less than IoU 0.5",
    "background": "no object of its class there",
}


def render(
    evaluated,
    matches,
    results,
    diagrams,
    curves,
    keypoint_errors,
    history,
    *,
    title,
    score_threshold,
    num_pictures,
    written,
):
    """The page as HTML, with everything in it; arguments as `write_report` computes them."""
    truth = evaluated.truth
    names = {category["id"]: category["name"] for category in truth.cats.values()}
    gallery = _Gallery(evaluated, names, num_pictures)
    confused = [alarm for alarm in matches.false_alarms if alarm.reason == "other class"]
    alarms = [alarm for alarm in matches.false_alarms if alarm.reason != "other class"]
    missed = [miss for miss in matches.misses if miss.reason != "other class"]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["points"] = lambda value: "–" if math.isnan(value) else f"{100 * value:.1f}"
    environment.filters["number"] = (
        lambda value, digits=1: "–" if math.isnan(value) else f"{value:.{digits}f}"
    )
    template = environment.from_string(
        files(__package__).joinpath("template.html").read_text(encoding="utf-8")
    )
    objects = [a for a in truth.anns.values() if not a.get("iscrowd")]
    return template.render(
        title=title,
        dataset=evaluated.dataset,
        written=written.strftime("%Y-%m-%d %H:%M %Z"),
        iteration=history.last_iteration,
        counts={"images": len(truth.imgs), "objects": len(objects), "detections": len(evaluated.records)},
        results=results,
        classes=_class_rows(results, matches, names),
        score_threshold=score_threshold,
        figures=_figures(evaluated, matches, results, diagrams, curves, keypoint_errors, history, names),
        best={task: curve.best for task, curve in curves.items()},
        diagrams=diagrams,
        keypoint_errors=keypoint_errors,
        confusions=_confusions(matches, names),
        miss_reasons=matches.reasons("misses"),
        alarm_reasons=matches.reasons("false_alarms"),
        miss_texts=_MISS_TEXTS,
        alarm_texts=_ALARM_TEXTS,
        misses=gallery.of_misses(missed),
        alarms=gallery.of_alarms(alarms),
        confused=gallery.of_alarms(confused),
        has_images=bool(evaluated.image_root),
        unreadable=sorted(gallery.unreadable),
        timing=_timing(history) | evaluated.timing,
    )


def _figures(evaluated, matches, results, diagrams, curves, keypoint_errors, history, names):
    drawn = {
        "losses": figures.losses_figure(history) if history.losses else None,
        "precision": figures.precision_figure(history, evaluated.dataset)
        if history.precisions(evaluated.dataset)
        else None,
        "class_precision": figures.class_precision_figure(history, evaluated.dataset),
        "precision_recall": figures.precision_recall_figure(results) if results else None,
        "thresholds": figures.threshold_figure(curves) if curves else None,
        "confusion": figures.confusion_figure(matches, [names[k] for k in matches.category_ids]),
        "reliability": figures.reliability_figure(diagrams) if diagrams else None,
        "keypoints": figures.keypoint_figure(keypoint_errors) if keypoint_errors else None,
        "timing": figures.timing_figure(history) if "time" in history else None,
    }
    return {name: figures.as_data_uri(figure) for name, figure in drawn.items() if figure is not None}


def _class_rows(results, matches, names):
    """A row a class with objects or detections: counts, and its result in each task."""
    rows = []
    by_task = {task: {item.name: item for item in result.classes} for task, result in results.items()}
    for place, category in enumerate(matches.category_ids):
        name = names[category]
        objects = int(matches.confusion[place].sum())
        alarms = int(matches.confusion[-1, place])
        if not objects and not alarms:
            continue
        found = int(matches.confusion[place, place])
        rows.append(
            {
                "name": name,
                "objects": objects,
                "found": found,
                "alarms": alarms,
                "tasks": {task: items.get(name) for task, items in by_task.items()},
            }
        )
    return rows


def _confusions(matches, names, most=15):
    """(is, found as, count, share of the objects), the most frequent first."""
    counts = matches.confusion[:-1, :-1]
    rows = []
    for row, category in enumerate(matches.category_ids):
        for column, other in enumerate(matches.category_ids):
            if row != column and counts[row, column]:
                share = counts[row, column] / matches.confusion[row].sum()
                rows.append((names[category], names[other], int(counts[row, column]), float(share)))
    return sorted(rows, key=lambda row: -row[2])[:most]


def _timing(history):
    rows = {}
    _, seconds = history.points("time")
    iterations, _ = history.points("total_loss")
    if seconds:
        middle = sorted(seconds)[len(seconds) // 2]
        rows["training, per iteration (median)"] = f"{middle:.3g} s"
        _, waiting = history.points("data_time")
        if waiting and middle:
            waited = sorted(waiting)[len(waiting) // 2]
            rows["of it, waiting for data"] = f"{waited:.3g} s ({100 * waited / middle:.0f} %)"
        if iterations:
            rows["training so far, without evaluations"] = _duration(middle * (iterations[-1] + 1))
    _, left = history.points("eta_seconds")
    if left and left[-1] >= 1:
        rows["left at the last log line"] = _duration(left[-1])
    return rows


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


class _Gallery:
    def __init__(self, evaluated, names, most):
        self._evaluated = evaluated
        self._names = names
        self._most = most
        self._image = (None, None)
        self.unreadable = set()

    def of_misses(self, misses):
        return [
            self._picture(m.truth, m.detection, m.reason, _MISS_TEXTS, m.iou) for m in misses[: self._most]
        ]

    def of_alarms(self, alarms):
        return [
            self._picture(a.truth, a.detection, a.reason, _ALARM_TEXTS, a.iou) for a in alarms[: self._most]
        ]

    def _picture(self, truth, detection, reason, texts, iou):
        image = self._evaluated.truth.imgs[(truth or detection)["image_id"]]
        pixels = self._read(image)
        picture = None
        if pixels is not None:
            picture = jpeg_data_uri(
                error_picture(pixels, [truth] if truth else [], [detection] if detection else [])
            )
        return {
            "picture": picture,
            "truth": self._names[truth["category_id"]] if truth else None,
            "found": self._names[detection["category_id"]] if detection else None,
            "score": detection["score"] if detection else None,
            "iou": math.floor(100 * iou) / 100 if truth and detection else None,  # 0.499 is not 0.5
            "reason": reason,
            "text": texts[reason],
            "file_name": image["file_name"],
            "short_name": PurePath(image["file_name"]).name,
            "size": "{:.0f} x {:.0f}".format(*(truth or detection)["bbox"][2:]),
        }

    def _read(self, image):
        if not self._evaluated.image_root:
            return None
        if self._image[0] != image["id"]:
            self._image = (image["id"], read_picture(image, self._evaluated.image_root))
        if self._image[1] is None:
            self.unreadable.add(image["file_name"])
        return self._image[1]
