"""COCO's average precisions of any framework's predictions. Runs without detectron2."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from ..data.keypoint_names import are_coco_keypoints, suggested_sigmas

__all__ = ["TruthCOCO", "detection_limits", "evaluate_task", "oks_sigmas", "precisions_of"]

_MOST_KEYPOINT_DETECTIONS = 20  # of an image, COCO's keypoint evaluation
_MOST_DETECTIONS = 100
_BY_SIZE = ("small", "medium", "large")


class TruthCOCO(COCO):
    """Ground truth of the content of an annotation file, mended as by `mrcnn_ext.data`.

    Masks are ranked by "mask_score" where predictions have it. For masks, an object without a segmentation is a crowd
    region of its box: what is found there is neither right nor wrong.

    Args:
        content: {"images", "categories", "annotations"}.
    """

    def __init__(self, content: dict):
        super().__init__()
        self.dataset = content
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self.createIndex()

    def loadRes(self, results):
        # pycocotools writes into the records that it is given, as does ranking by keypoint scores: copies are its.
        results = [dict(record) for record in results]
        for record in results:
            # Whoever evaluates masks takes the boxes away, lest pycocotools take their area for the masks'.
            if "mask_score" in record and "bbox" not in record:
                record["score"] = record["mask_score"]
        return super().loadRes(results)

    def for_masks(self) -> TruthCOCO:
        """The same, in which every object can be drawn."""
        annotations = self.dataset.get("annotations", ())
        if all(annotation.get("segmentation") for annotation in annotations):
            return self
        drawable = [a if a.get("segmentation") else _region(a) for a in annotations]
        count = sum(not a.get("segmentation") and not a["iscrowd"] for a in annotations)
        logging.getLogger(__name__).warning(
            "%d of %d objects have no segmentation: mask AP leaves them out, and what is found in their boxes",
            count,
            len(annotations),
        )
        return TruthCOCO({**self.dataset, "annotations": drawable})

    def for_keypoints(self, num_keypoints: int) -> TruthCOCO:
        """The same, in which every object has keypoints: those without have none that is visible."""
        annotations = self.dataset.get("annotations", ())
        if all("keypoints" in annotation for annotation in annotations):
            return self
        none = {"keypoints": [0] * (3 * num_keypoints), "num_keypoints": 0}
        return TruthCOCO({**self.dataset, "annotations": [{**none, **a} for a in annotations]})


def _region(annotation: dict) -> dict:
    x, y, w, h = annotation["bbox"]
    return {**annotation, "iscrowd": 1, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}


def oks_sigmas(given: Sequence[float], names: Sequence[str], counts: set[int], where: str) -> list[float]:
    """The sigmas of object keypoint similarity: those given, or COCO's for COCO's keypoints.

    Args:
        given: one for each keypoint; empty if there are none.
        names: of the keypoints; empty if nobody knows them.
        counts: how many keypoints the dataset's objects have.
        where: the dataset, for messages.

    Raises:
        ValueError: not one for each keypoint; or none, and the keypoints are not COCO's.
    """
    coco = [float(v) for v in Params("keypoints").kpt_oks_sigmas]
    sigmas = [float(v) for v in given] or coco
    if not given and names and not are_coco_keypoints(names):
        start = ", ".join(f"{v:g}" for v in suggested_sigmas(names))
        raise ValueError(
            f"{where}: its {len(names)} keypoints ({', '.join(names[:3])}, ...) are not COCO's, so that object "
            "keypoint similarity needs a standard deviation for each, relative to object scale, in "
            'TEST.KEYPOINT_OKS_SIGMAS or the dataset\'s metadata keypoint_oks_sigmas ("sigmas" of its description). '
            f"To start from: [{start}], which is 'coco'; greater ones forgive more. Of data that several people have "
            "annotated they can be estimated: sigmas: {annotators: [files]} in the description"
        )
    if counts - {len(sigmas)} or (names and len(names) != len(sigmas)):
        found = sorted(counts) or [len(names)]
        raise ValueError(
            f"{where}: objects have {found} keypoints but there are {len(sigmas)} "
            "sigmas for object keypoint similarity; give one per keypoint in TEST.KEYPOINT_OKS_SIGMAS "
            "or in the dataset's metadata keypoint_oks_sigmas"
        )
    if not given and not names and counts:
        logging.getLogger(__name__).warning(
            "%s: COCO's sigmas are taken for its keypoints, of which nobody knows the names", where
        )
    return sigmas


def detection_limits(task: str, truth: COCO, records: Sequence[dict], most: int | None = None) -> list[int]:
    """How many detections of an image count, COCO's maxDets.

    COCO counts the 100 best boxes and masks, and the 20 best keypoint detections. That is too few where a model is
    asked for more, or an image has more people: then as many count as were predicted, or as there are.

    Args:
        task: "bbox", "segm" or "keypoints".
        truth: the ground truth.
        records: predictions.
        most: the limit, whatever is predicted; for keypoints if it is above 100. None as above.

    Returns:
        Limits for the average recalls, the last one for everything else.
    """
    if task != "keypoints":
        predicted = max(Counter(record["image_id"] for record in records).values(), default=0)
        return [1, 10, most if most is not None else max(_MOST_DETECTIONS, predicted)]
    people = Counter(a["image_id"] for a in truth.anns.values() if a.get("num_keypoints"))
    asked_for = most if most is not None and most > _MOST_DETECTIONS else 0
    return [max(asked_for, _MOST_KEYPOINT_DETECTIONS, *people.values())]


def evaluate_task(
    truth: TruthCOCO,
    records: Sequence[dict],
    task: str,
    *,
    sigmas: Sequence[float] = (),
    most: int | None = None,
    image_ids: Sequence | None = None,
    category_ids: Sequence | None = None,
    evaluation_class: type[COCOeval] = COCOeval,
) -> COCOeval:
    """Runs COCO's evaluation; its table is printed.

    Args:
        truth: the ground truth.
        records: predictions in COCO's results format, or none.
        task: "bbox", "segm" or "keypoints".
        sigmas: of the keypoints.
        most: as for `detection_limits`.
        image_ids, category_ids: evaluate these alone.
        evaluation_class: pycocotools' or a subclass.

    Returns:
        COCOeval: evaluated; ``stats`` are in pycocotools' order.
    """
    if task == "segm":
        # pycocotools would take the area of a box for the area of its mask.
        records = [{key: value for key, value in record.items() if key != "bbox"} for record in records]
        truth = truth.for_masks()
    if task == "keypoints":
        truth = truth.for_keypoints(len(sigmas))
    with contextlib.redirect_stdout(io.StringIO()):
        found = truth.loadRes(records) if records else TruthCOCO({**truth.dataset, "annotations": []})
    evaluation = _with_any_limit(evaluation_class)(truth, found, task)
    evaluation.params.maxDets = detection_limits(task, truth, records, most)
    if task == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    if image_ids is not None:
        evaluation.params.imgIds = list(image_ids)
    if category_ids is not None:
        evaluation.params.catIds = list(category_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def precisions_of(evaluation: COCOeval) -> dict[str, float]:
    """What `evaluate_task` has found, in points: "AP", "AP50", "AP75", "APs" (not of keypoints), "APm", "APl", and
    "AP-<class>" of each class if there are several; NaN without an object."""
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    if evaluation.params.iouType == "keypoints":
        names.remove("APs")
    found = {
        name: 100 * value if value > -1 else float("nan")
        for name, value in zip(names, map(float, evaluation.stats), strict=False)
    }
    params, precision = evaluation.params, evaluation.eval["precision"]
    if len(params.catIds) > 1:
        place = list(params.areaRngLbl).index("all")
        for k, category in enumerate(params.catIds):
            values = precision[:, :, k, place, -1]
            values = values[values > -1]
            name = evaluation.cocoGt.cats[category]["name"]
            found[f"AP-{name}"] = 100 * float(values.mean()) if values.size else float("nan")
    return found


def _with_any_limit(evaluation_class: type[COCOeval]) -> type[COCOeval]:
    """pycocotools' summary knows the limits 100 and 20 alone."""
    return type(evaluation_class.__name__, (_AnyLimit, evaluation_class), {})


class _AnyLimit:
    def summarize(self):
        if self.params.iouType == "keypoints":
            rows = [row for kind in ("precision", "recall") for row in self._rows(kind, ("medium", "large"))]
        else:
            rows = self._rows("precision", _BY_SIZE)
            rows += [self._mean("recall", "all", limit=k) for k in range(len(self.params.maxDets))]
            rows += [self._mean("recall", size) for size in _BY_SIZE]
        self.stats = np.array(rows)

    def _rows(self, kind: str, sizes: tuple[str, ...]) -> list[float]:
        rows = [self._mean(kind, "all"), *(self._mean(kind, "all", iou=iou) for iou in (0.5, 0.75))]
        return rows + [self._mean(kind, size) for size in sizes]

    def _mean(self, kind: str, size: str, iou: float | None = None, limit: int = -1) -> float:
        """The mean over thresholds, recalls and categories; -1 without an object. Prints it as pycocotools does."""
        area = list(self.params.areaRngLbl).index(size)
        values = self.eval[kind][..., area, limit]
        if iou is not None:
            values = values[np.isclose(self.params.iouThrs, iou)]
        values = values[values > -1]
        mean = float(values.mean()) if values.size else -1.0
        title, short = ("Average Precision", "(AP)") if kind == "precision" else ("Average Recall", "(AR)")
        thresholds = self.params.iouThrs
        shown = f"{thresholds[0]:0.2f}:{thresholds[-1]:0.2f}" if iou is None else f"{iou:0.2f}"
        most = self.params.maxDets[limit]
        print(
            f" {title:<18} {short} @[ IoU={shown:<9} | area={size:>6s} | maxDets={most:>3d} ] = {mean:0.3f}"
        )
        return mean
