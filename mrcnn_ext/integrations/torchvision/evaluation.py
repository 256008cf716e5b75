"""COCO and Cityscapes metrics of a detector of torchvision."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Sequence

import torch
from torch import nn

from ...evaluation.bitmap_rle import encode_masks
from ...evaluation.cityscapes_metrics import check_labels, instance_precisions, store_predictions
from ...evaluation.coco_metrics import evaluate_task, oks_sigmas
from ...layers import LazyMasks
from .data import CocoInstances

__all__ = ["evaluate_cityscapes", "evaluate_coco", "predict"]

logger = logging.getLogger(__name__)

# What COCOeval's summary holds, in its order, and those of them that detectron2's tables show.
_METRICS = {
    "bbox": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "segm": {"AP": 0, "AP50": 1, "AP75": 2, "APs": 3, "APm": 4, "APl": 5},
    "keypoints": {"AP": 0, "AP50": 1, "AP75": 2, "APm": 3, "APl": 4},
}


def predict(model: nn.Module, dataset: CocoInstances) -> list[dict]:
    """What a model finds in the images of a dataset, in COCO's results format, images in order.

    Args:
        model: of torchvision.models.detection; is put in evaluation mode.
        dataset: without flipping.

    Returns:
        One dict per object: image_id, category_id, bbox [x, y, width, height], score, and, where the model
        gives them, segmentation (compressed RLE) and keypoints [x, y, score, ...] (pixel indices, as COCO's).
    """
    device = next(model.parameters()).device
    model.eval()
    results = []
    for image, target in dataset:
        with torch.inference_mode():
            output = model([image.to(device)])[0]
        output = {key: value.to("cpu") for key, value in output.items()}
        results += _results(int(target["image_id"]), output, dataset.category_ids)
    return results


def _results(image_id: int, output: dict, category_ids: list[int]) -> list[dict]:
    boxes = output["boxes"].clone()
    boxes[:, 2:] -= boxes[:, :2]
    results = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box, "score": score}
        for label, box, score in zip(
            output["labels"].tolist(), boxes.tolist(), output["scores"].tolist(), strict=True
        )
    ]
    if "masks" in output:
        masks = output["masks"]
        for result, rle in zip(
            results, encode_masks(masks if isinstance(masks, LazyMasks) else masks[:, 0] > 0.5), strict=True
        ):
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    if "keypoints" in output:
        points = output["keypoints"].clone()
        points[..., :2] -= 0.5
        points[..., 2] = output["keypoints_scores"]
        for result, keypoints in zip(results, points.flatten(1).tolist(), strict=True):
            result["keypoints"] = keypoints
    return results


def evaluate_coco(
    dataset: CocoInstances,
    results: list[dict],
    tasks: Sequence[str] = ("bbox", "segm", "keypoints"),
    sigmas: Sequence[float] = (),
) -> dict[str, dict[str, float]]:
    """COCO's average precisions, in points: {"bbox": {"AP": ..., "AP50": ...}, "segm": {...}, ...}.

    A metric without objects to judge by (APl where none is large) is NaN. Nothing predicted is an AP of 0.

    Args:
        dataset: what was predicted on.
        results: of :func:`predict`.
        tasks: any of "bbox", "segm", "keypoints", those that the model predicts.
        sigmas: standard deviation of each keypoint relative to object scale, for object keypoint similarity; default
            COCO's, for COCO's keypoints.

    Raises:
        ValueError: sigmas are missing, or not one per keypoint.
    """
    metrics = {}
    for task in tasks:
        if not results:  # of which nothing can be right
            metrics[task] = dict.fromkeys(_METRICS[task], 0.0)
            continue
        options = {}
        if task == "keypoints":
            options["category_ids"] = _categories_with_keypoints(dataset)
            counts = {dataset.num_keypoints} - {0}
            options["sigmas"] = oks_sigmas(sigmas, dataset.keypoint_names, counts, "keypoint AP")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            evaluation = evaluate_task(dataset.coco, results, task, **options)
        table = printed.getvalue()
        logger.info("COCO %s:\n%s", task, table[table.index(" Average Precision") :].rstrip())
        # -1 is COCO's word for no object of this kind in the ground truth.
        values = [100 * value if value >= 0 else float("nan") for value in evaluation.stats.tolist()]
        metrics[task] = {name: values[index] for name, index in _METRICS[task].items()}
    return metrics


def _categories_with_keypoints(dataset: CocoInstances) -> list[int]:
    named = [category["id"] for category in dataset.coco.cats.values() if category.get("keypoints")]
    return named or sorted({a["category_id"] for a in dataset.coco.anns.values() if a.get("num_keypoints")})


def evaluate_cityscapes(dataset: CocoInstances, results: list[dict], gt_dir: str) -> dict[str, float]:
    """Cityscapes' instance metrics, in points: "AP", "AP50", and "AP-<class>" of each class.

    Args:
        dataset: what was predicted on; its images are named as Cityscapes', its categories too.
        results: of :func:`predict`, with masks.
        gt_dir: ``gtFine/<split>``: a folder per city with ``*_gtFine_instanceIds.png``.

    Raises:
        FileNotFoundError: no ground truth there.
        ValueError: a category of which Cityscapes has no instances.
        RuntimeError: cityscapesscripts refused the predictions; says why.
    """
    names = {category_id: category["name"] for category_id, category in dataset.coco.cats.items()}
    check_labels(names.values())
    of_image: dict[int, list[dict]] = {image_id: [] for image_id in dataset.ids}
    for result in results:
        of_image[result["image_id"]].append(result)
    with tempfile.TemporaryDirectory(prefix="cityscapes_") as folder:
        for image_id, found in of_image.items():
            store_predictions(
                folder,
                dataset.coco.imgs[image_id]["file_name"],
                [names[result["category_id"]] for result in found],
                [result["score"] for result in found],
                [result["segmentation"] for result in found],
            )
        precisions, _ = instance_precisions(folder, gt_dir)
    return precisions
