"""Instance segmentation metrics of Cityscapes."""

import glob
import json
import os
from collections import OrderedDict

from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from pycocotools import mask as mask_utils

from ..data.loading import coco_content
from .bitmap_rle import encode_masks
from .cityscapes_metrics import as_text, check_labels, instance_precisions, store_predictions
from .coco_metrics import TruthCOCO, evaluate_task, precisions_of

__all__ = ["CityscapesInstanceEvaluator"]


class CityscapesInstanceEvaluator(_CityscapesInstanceEvaluator):
    """detectron2's evaluator, which fails clearly without masks, logs its table and leaves no file behind.

    AP is averaged over the eight classes and the IoU thresholds 0.5 to 0.95; instances below 100 pixels are
    ignored, whatever the size of the image. Runs on one machine only.

    The result is that of cityscapesscripts; see :func:`.cityscapes_metrics.instance_precisions`. Masks are ranked by
    ``mask_scores`` where predictions have them.

    Besides it, as "coco_bbox" and "coco_segm", are COCO's average precisions of the same predictions, against the
    dataset's own annotations, as papers that compare with COCO give them.

    Args:
        dataset_name: a registered dataset of evaluator type "cityscapes_instance".
        coco_style: evaluate by COCO's measure too.

    Raises:
        ValueError: the dataset has a class of which Cityscapes has no instances.
    """

    def __init__(self, dataset_name: str, coco_style: bool = True):
        super().__init__(dataset_name)
        self.dataset_name, self._coco_style = dataset_name, coco_style
        check_labels(self._metadata.get("thing_classes", ()))

    def process(self, inputs, outputs):
        for input, output in zip(inputs, outputs, strict=True):
            names, scores, rles, records = [], [], [], []
            if "instances" in output:
                instances = output["instances"]
                if not instances.has("pred_masks"):
                    raise ValueError("Cityscapes instance evaluation needs masks: set MODEL.MASK_ON to True")
                rles = encode_masks(instances.pred_masks)
                scores = instances.get("mask_scores" if instances.has("mask_scores") else "scores").cpu()
                names = [self._metadata.thing_classes[label] for label in instances.pred_classes.tolist()]
                records = _records(instances, rles) if self._coco_style else []
            store_predictions(self._temp_dir, input["file_name"], names, scores, rles)
            if self._coco_style:  # in a file: other processes' are evaluated with them
                name = os.path.basename(input["file_name"])
                with open(os.path.join(self._temp_dir, f"{name}_coco.json"), "w") as file:
                    json.dump({"file_name": name, "records": records}, file)

    def evaluate(self):
        comm.synchronize()
        if comm.get_rank() > 0:
            return None
        try:
            gt_dir = PathManager.get_local_path(self._metadata.gt_dir)
            precisions, table = instance_precisions(self._temp_dir, gt_dir)
            self._logger.info("Cityscapes instance segmentation:\n%s", table)
            results = OrderedDict(segm=precisions)
            if self._coco_style:
                try:
                    results.update(self._coco_results())
                except Exception:  # Cityscapes' own measure is worth more than the other
                    self._logger.exception(
                        "COCO's measure of the predictions on %s failed", self.dataset_name
                    )
            return results
        finally:
            self._working_dir.cleanup()

    def _coco_results(self):
        content = coco_content(self.dataset_name)
        if not content.get("annotations"):
            return {}
        ids = {os.path.basename(image["file_name"]): image["id"] for image in content["images"]}
        records = []
        for path in sorted(glob.glob(os.path.join(self._temp_dir, "*_coco.json"))):
            with open(path) as file:
                found = json.load(file)
            image_id = ids.get(found["file_name"])
            if image_id is not None:  # as by Cityscapes' measure, what has no truth is not evaluated
                records += [{**record, "image_id": image_id} for record in found["records"]]
        truth = TruthCOCO(content)
        self._logger.info("The same by COCO's measure, boxes, then masks:")
        return {
            f"coco_{task}": precisions_of(evaluate_task(truth, records, task)) for task in ("bbox", "segm")
        }


def _records(instances, rles):
    """COCO's results, but for the image; a box that there is none of is that of the mask."""
    scores = instances.scores.tolist()
    ranks = instances.mask_scores.tolist() if instances.has("mask_scores") else scores
    if instances.has("pred_boxes"):
        corners = instances.pred_boxes.tensor.cpu()
        boxes = [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners.tolist()]
    else:
        boxes = mask_utils.toBbox(rles).tolist() if len(rles) else []
    found = zip(instances.pred_classes.tolist(), scores, ranks, boxes, rles, strict=True)
    return [
        {
            "category_id": label,
            "score": score,
            "mask_score": rank,
            "bbox": box,
            "segmentation": {**rle, "counts": as_text(rle["counts"])},
        }
        for label, score, rank, box, rle in found
    ]
