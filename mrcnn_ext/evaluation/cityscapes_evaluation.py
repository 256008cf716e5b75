"""Instance segmentation metrics of Cityscapes."""

import contextlib
import copy
import io
import json
import os

import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator
from pycocotools import mask as mask_utils

from .bitmap_rle import encode_masks

__all__ = ["CityscapesInstanceEvaluator"]


class CityscapesInstanceEvaluator(_CityscapesInstanceEvaluator):
    """detectron2's evaluator, which fails clearly without masks, logs its table and leaves no file behind.

    AP is averaged over the eight classes and the IoU thresholds 0.5 to 0.95; instances below 100 pixels are
    ignored, whatever the size of the image. Runs on one machine only.

    The result is that of cityscapesscripts. Masks wait for it as RLE instead of a PNG each, and the pixels that
    a mask shares with the ground truth are counted within its box, once for all objects. Masks are ranked by
    ``mask_scores`` where predictions have them.
    """

    def process(self, inputs, outputs):
        from cityscapesscripts.helpers.labels import name2label

        for input, output in zip(inputs, outputs, strict=True):
            stem = os.path.splitext(os.path.basename(input["file_name"]))[0]
            lines, rles = [], []
            if "instances" in output:
                instances = output["instances"]
                if not instances.has("pred_masks"):
                    raise ValueError("Cityscapes instance evaluation needs masks: set MODEL.MASK_ON to True")
                rles = encode_masks(instances.pred_masks)
                scores = instances.get("mask_scores" if instances.has("mask_scores") else "scores").cpu()
                found = zip(instances.pred_classes.tolist(), scores, strict=True)
                for i, (label, score) in enumerate(found):
                    label_id = name2label[self._metadata.thing_classes[label]].id
                    lines.append(f"{stem}_{i} {label_id} {score}\n")
            path = os.path.join(self._temp_dir, f"{stem}_pred")
            with open(f"{path}.txt", "w") as file:
                file.writelines(lines)
            with open(f"{path}.json", "w") as file:
                json.dump([{**rle, "counts": rle["counts"].decode()} for rle in rles], file)

    def evaluate(self):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed), _matching_by_rle():
                return super().evaluate()
        except SystemExit as error:
            # cityscapesscripts prints what is wrong, then ends the process.
            reason = printed.getvalue().strip().rpartition("ERROR: ")[2]
            raise RuntimeError(f"Cityscapes evaluation: {reason}") from error
        finally:
            _, table, rows = printed.getvalue().partition("\n\n#")
            if table:
                self._logger.info("Cityscapes instance segmentation:\n#" + rows.rstrip())
            self._working_dir.cleanup()


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
