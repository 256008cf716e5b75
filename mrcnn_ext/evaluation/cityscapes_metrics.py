"""Cityscapes' instance metrics of any framework's predictions. Runs without detectron2."""

import contextlib
import copy
import glob
import io
import json
import os

import numpy as np
from pycocotools import mask as mask_utils

from .. import compat

__all__ = ["as_text", "check_labels", "instance_precisions", "store_predictions"]


def check_labels(names):
    """Raises ValueError where Cityscapes does not evaluate instances of one of the classes."""
    from cityscapesscripts.helpers.labels import labels

    known = [label.name for label in labels if label.hasInstances and not label.ignoreInEval]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Cityscapes has no instances of {', '.join(map(repr, unknown))} to evaluate: classes must be among "
            f"{', '.join(known)}"
        )


def store_predictions(folder: str, file_name: str, names: list[str], scores: list, rles: list[dict]):
    """Writes what was found in an image to where `instance_precisions` reads it.

    Args:
        folder: of all predictions; `instance_precisions` takes it.
        file_name: of the image, "..._leftImg8bit.png".
        names: Cityscapes' name of the class of each object.
        scores: of each.
        rles: mask of each, compressed RLE of the image's size.
    """
    from cityscapesscripts.helpers.labels import name2label

    stem = os.path.splitext(os.path.basename(file_name))[0]
    path = os.path.join(folder, f"{stem}_pred")
    with open(f"{path}.txt", "w") as file:
        for i, (name, score) in enumerate(zip(names, scores, strict=True)):
            file.write(f"{stem}_{i} {name2label[name].id} {score}\n")
    with open(f"{path}.json", "w") as file:
        json.dump([{**rle, "counts": as_text(rle["counts"])} for rle in rles], file)


def as_text(counts: bytes | str) -> str:
    """The counts of RLE as JSON takes them."""
    return counts.decode() if isinstance(counts, bytes) else counts


def instance_precisions(folder: str, gt_dir: str):
    """Average precision over the classes and the IoU thresholds 0.5 to 0.95, by cityscapesscripts.

    Masks are matched as RLE instead of a PNG each, and the pixels that a mask shares with the ground truth are counted
    within its box, once for all objects; the result is the same.

    Args:
        folder: of the predictions of every image, by `store_predictions`.
        gt_dir: ``gtFine/<split>``: a folder per city with ``*_gtFine_instanceIds.png``.

    Returns:
        (dict, str): {"AP", "AP50"} and "AP-<class>" of each class in points (NaN for a class without an object), and
        the table of the classes.

    Raises:
        FileNotFoundError: no ground truth there.
        RuntimeError: cityscapesscripts refused the predictions; says why.
    """
    compat.apply()
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

    truth = sorted(glob.glob(os.path.join(gt_dir, "*", "*_gtFine_instanceIds.png")))
    if not truth:
        raise FileNotFoundError(f"no */*_gtFine_instanceIds.png under {gt_dir}")
    settings = scripts.args
    settings.predictionPath, settings.predictionWalk = os.path.realpath(folder), None
    settings.JSONOutput = settings.colorized = False
    settings.gtInstancesFile = os.path.join(folder, "gtInstances.json")
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), _matching_by_rle():
            predictions = [scripts.getPrediction(file, settings) for file in truth]
            averages = scripts.evaluateImgLists(predictions, truth, settings)["averages"]
    except SystemExit as error:
        # cityscapesscripts prints what is wrong, then ends the process.
        reason = printed.getvalue().strip().rpartition("ERROR: ")[2]
        raise RuntimeError(f"Cityscapes evaluation: {reason}") from error
    _, _, rows = printed.getvalue().partition("\n\n#")
    precisions = {"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])}
    precisions |= {f"AP-{name}": 100 * float(of["ap"]) for name, of in averages["classes"].items()}
    return precisions, f"#{rows.rstrip()}" if rows else ""


@contextlib.contextmanager
def _matching_by_rle():
    """Within it cityscapesscripts matches predictions as `process` has stored them."""
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

    stock = scripts.assignGt2Preds
    scripts.assignGt2Preds = _assign_ground_truth
    try:
        yield
    finally:
        scripts.assignGt2Preds = stock


def _assign_ground_truth(gt_instances, gt_image, predictions, args):
    """cityscapesscripts' ``assignGt2Preds``: the objects of an image and its predictions, each with its matches.

    Args:
        gt_instances: objects by label name.
        gt_image: picture of instance ids.
        predictions: label id and confidence by path; the path ends with the mask's number.
        args: of cityscapesscripts.
    """
    from cityscapesscripts.helpers.labels import id2label, labels

    objects = copy.deepcopy(gt_instances)
    for instance in (instance for group in objects.values() for instance in group):
        instance["matchedPred"] = []
    found = {label: [] for label in args.instLabels}
    if not predictions:
        return objects, found
    with open(f"{next(iter(predictions)).rpartition('_')[0]}_pred.json") as file:
        rles = json.load(file)
    areas, boxes = mask_utils.area(rles), mask_utils.toBbox(rles).astype(int)
    instance_ids = np.array(gt_image)
    void_ids = [label.id for label in labels if label.ignoreInEval and label.id >= 0]
    count = 0
    for path, info in predictions.items():
        name = id2label[info["labelID"]].name
        index = int(path.rpartition("_")[2])
        if name not in found or not areas[index]:
            continue
        x, y, w, h = boxes[index]
        mask = mask_utils.decode(rles[index])[y : y + h, x : x + w]
        shared = np.bincount(instance_ids[y : y + h, x : x + w][mask.astype(bool)])

        def pixels(instance_id, shared=shared):
            return int(shared[instance_id]) if instance_id < len(shared) else 0

        prediction = {
            "imgName": path,
            "predID": count,
            "labelID": info["labelID"],
            "pixelCount": int(areas[index]),
            "confidence": info["conf"],
            "voidIntersection": sum(map(pixels, void_ids)),
        }
        matched = []
        for number, instance in enumerate(gt_instances[name]):
            intersection = pixels(instance["instID"])
            if intersection:
                matched.append({**instance, "intersection": intersection})
                objects[name][number]["matchedPred"].append({**prediction, "intersection": intersection})
        found[name].append({**prediction, "matchedGt": matched})
        count += 1
    return objects, found
