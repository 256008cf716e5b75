"""Box, mask and keypoint metrics of COCO."""

import contextlib
import copy
import io

from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as _instances_to_coco_json
from detectron2.structures import Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from .bitmap_rle import encode_masks
from .boundary import BoundaryCOCOeval

__all__ = ["COCOEvaluator", "instances_to_coco_json"]


class COCOEvaluator(_COCOEvaluator):
    """detectron2's evaluator for datasets of any number of keypoints, some of whose classes may have none.

    * Predictions are left as they are: detectron2's moves ``pred_keypoints`` by half a pixel in place.
    * Objects annotated without keypoints count as objects with none visible, which COCO ignores.
    * Object keypoint similarity takes its sigmas from ``kpt_oks_sigmas`` or from the dataset's metadata
      ``keypoint_oks_sigmas``. Without either there must be COCO's 17 keypoints.
    * Masks which know their encoding, as :class:`~mrcnn_ext.layers.lazy_masks.LazyMasks`, never become
      bitmaps, and of bitmaps only the part with pixels is encoded. The results are the same.
    * The task "boundary" is mask AP by the outline too: see :class:`BoundaryCOCOeval`.
    * Masks are ranked by ``mask_scores`` where predictions have them, as :class:`~mrcnn_ext.modeling.MaskScoringHead`'s
      do; boxes and keypoints by ``scores``. Both are in the results file, as "mask_score" and "score".
    * Where nothing at all was predicted, each of ``tasks`` scores 0, instead of vanishing or NaN.

    Args:
        dataset_name (str): a registered dataset.
        tasks (tuple[str]): any of "bbox", "segm", "keypoints", "boundary". Default: what the first predictions have.
        kpt_oks_sigmas (list[float]): (K,) standard deviation of each keypoint, relative to object scale.
        kwargs: the other arguments of :class:`detectron2.evaluation.COCOEvaluator`.

    Raises:
        ValueError: sigmas missing, or not one per keypoint.
    """

    def __init__(self, dataset_name, tasks=None, *, kpt_oks_sigmas=(), **kwargs):
        metadata = MetadataCatalog.get(dataset_name)
        kpt_oks_sigmas = list(kpt_oks_sigmas) or list(metadata.get("keypoint_oks_sigmas", ()))
        tasks = tuple(tasks) if tasks is not None else None
        self._boundary = tasks is not None and "boundary" in tasks
        if self._boundary:  # detectron2 knows no such task
            tasks = tuple(task for task in tasks if task != "boundary")
        super().__init__(dataset_name, tasks, kpt_oks_sigmas=kpt_oks_sigmas, **kwargs)
        ground_truth, self._coco_api = self._coco_api, _MaskScoringCOCO()
        vars(self._coco_api).update(vars(ground_truth))
        if self._do_evaluation and (tasks is None or "keypoints" in tasks):
            num_sigmas = len(kpt_oks_sigmas) or len(Params("keypoints").kpt_oks_sigmas)
            self._complete_keypoints(dataset_name, num_sigmas)

    def _complete_keypoints(self, dataset_name, num_sigmas):
        annotations = self._coco_api.anns.values()
        counts = {len(a["keypoints"]) // 3 for a in annotations if "keypoints" in a}
        if counts - {num_sigmas}:
            raise ValueError(
                f"dataset {dataset_name}: objects have {sorted(counts)} keypoints but there are {num_sigmas} "
                "sigmas for object keypoint similarity; give one per keypoint in TEST.KEYPOINT_OKS_SIGMAS "
                "or in the dataset's metadata keypoint_oks_sigmas"
            )
        if counts:
            for annotation in annotations:
                annotation.setdefault("keypoints", [0] * (3 * num_sigmas))
                annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))

    def process(self, inputs, outputs):
        for input, output in zip(inputs, outputs, strict=True):
            prediction = {"image_id": input["image_id"]}
            if "instances" in output:
                prediction["instances"] = instances_to_coco_json(output["instances"], input["image_id"])
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)

    def _eval_predictions(self, predictions, img_ids=None):
        super()._eval_predictions(predictions, img_ids)
        if self._boundary and self._do_evaluation:
            self._eval_boundaries([record for p in predictions for record in p["instances"]], img_ids)

    def _eval_boundaries(self, records, img_ids):
        """Fill ``self._results["boundary"]``; the records have the dataset's category ids by now."""
        coco_eval = None
        if records:
            # pycocotools would take the area of a box for the area of its mask.
            records = [{k: v for k, v in copy.deepcopy(r).items() if k != "bbox"} for r in records]
            coco_eval = BoundaryCOCOeval(self._coco_api, self._coco_api.loadRes(records))
            coco_eval.params.maxDets = self._max_dets_per_image
            if img_ids is not None:
                coco_eval.params.imgIds = img_ids
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        self._logger.info("Boundary AP, as segm:")
        names = self._metadata.get("thing_classes")
        self._results["boundary"] = self._derive_coco_results(coco_eval, "segm", names)

    def _rank_by_keypoint_scores(self, coco_eval):
        """Evaluates detections again by their "keypoint_score", if they have any."""
        detections = coco_eval.cocoDt.anns.values()
        if any("keypoint_score" in detection for detection in detections):
            for detection in detections:
                detection["score"] = detection.get("keypoint_score", detection["score"])
            self._logger.info("Keypoint AP, ranked by the scores of the keypoints:")
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is not None and iou_type == "keypoints":
            self._rank_by_keypoint_scores(coco_eval)
        if coco_eval is None:
            nothing = COCO()
            nothing.dataset = {**self._coco_api.dataset, "annotations": []}
            with contextlib.redirect_stdout(io.StringIO()):
                nothing.createIndex()
                coco_eval = COCOeval(self._coco_api, nothing, iou_type)
                coco_eval.evaluate()
                coco_eval.accumulate()
                coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


class _MaskScoringCOCO(COCO):
    """Ground truth against which masks are ranked by scores of their own."""

    def loadRes(self, results):
        # pycocotools writes into the records that it is given, as does ranking by keypoint scores: copies are its.
        results = [dict(record) for record in results]
        for record in results:
            # Whoever evaluates masks takes the boxes away, lest pycocotools take their area for the masks'.
            if "mask_score" in record and "bbox" not in record:
                record["score"] = record["mask_score"]
        return super().loadRes(results)


def instances_to_coco_json(instances: Instances, image_id: int) -> list[dict]:
    """detectron2's function of this name: the same records, sooner, and the instances are left as they are;
    ``mask_scores`` become "mask_score", ``keypoint_scores`` "keypoint_score".

    Args:
        instances: of one image, on any device. ``pred_masks`` is what :func:`encode_masks` takes.
        image_id: the record's.

    Returns:
        N records of COCO's results format: box, score, category, and what else the instances have.
    """
    fields = dict(instances.get_fields())
    masks = fields.pop("pred_masks", None)
    if "pred_keypoints" in fields:
        fields["pred_keypoints"] = fields["pred_keypoints"].clone()
    records = _instances_to_coco_json(Instances(instances.image_size, **fields).to("cpu"), image_id)
    for field, key in (("mask_scores", "mask_score"), ("keypoint_scores", "keypoint_score")):
        if instances.has(field):
            for record, score in zip(records, instances.get(field).tolist(), strict=True):
                record[key] = score
    if masks is None:
        return records
    for record, rle in zip(records, encode_masks(masks), strict=True):
        keypoints = record.pop("keypoints", None)
        record["segmentation"] = {**rle, "counts": rle["counts"].decode()}
        if keypoints is not None:
            record["keypoints"] = keypoints  # after the masks, as detectron2's
    return records
