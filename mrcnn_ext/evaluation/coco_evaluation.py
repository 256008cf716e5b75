"""Box, mask and keypoint metrics of COCO."""

import json
import logging
import os
import time

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator as _COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json as _instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.logger import create_small_table
from pycocotools.cocoeval import COCOeval

from ..data.keypoint_sigmas import named_sigmas
from ..data.loading import coco_content
from ..files import replacing
from .bitmap_rle import encode_masks
from .boundary import BoundaryCOCOeval
from .coco_metrics import TruthCOCO, evaluate_task, oks_sigmas
from .pose_tracks import pose_metrics

try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt as _FastCOCOeval
except ImportError:  # detectron2 without its compiled part
    _FastCOCOeval = None

__all__ = ["COCOEvaluator", "instances_to_coco_json"]


class COCOEvaluator(_COCOEvaluator):
    """detectron2's evaluator for data as people have them, on the data that training sees.

    * Annotations are mended as for training (`mrcnn_ext.data.annotations`): ids that pycocotools takes for no match,
      missing or impossible areas, "iscrowd" and "num_keypoints". They are read anew for each evaluator; nothing is
      cached, and neither the registered data nor their metadata change.
    * As many detections of an image count as were predicted, COCO's 100 at least; as many keypoint detections as
      an image has people, COCO's 20 at least. ``max_dets_per_image`` is another limit.
    * Predictions are left as they are: detectron2's moves ``pred_keypoints`` by half a pixel in place.
    * Objects annotated without keypoints count as objects with none visible, which COCO ignores. Objects without a
      segmentation are left out of mask AP, and so is what is found in their boxes.
    * Object keypoint similarity takes its sigmas from ``kpt_oks_sigmas`` or from the dataset's metadata
      ``keypoint_oks_sigmas``. Without either they must be COCO's 17 keypoints.
    * Masks which know their encoding, as :class:`~mrcnn_ext.layers.lazy_masks.LazyMasks`, never become
      bitmaps, and of bitmaps only the part with pixels is encoded. The results are the same.
    * The task "boundary" is mask AP by the outline too: see :class:`BoundaryCOCOeval`.
    * Masks are ranked by ``mask_scores`` where predictions have them, as :class:`~mrcnn_ext.modeling.MaskScoringHead`'s
      do; boxes and keypoints by ``scores``. Both are in the results file, as "mask_score" and "score".
    * Where the metadata name ``pck_thresholds``, keypoints are also measured by PCK, those of people with tracks by
      jitter: see :func:`.pose_tracks.pose_metrics`. It is the result "pck".
    * Where nothing at all was predicted, each of ``tasks`` scores 0, instead of vanishing or NaN.

    Args:
        dataset_name: a registered dataset.
        tasks: any of "bbox", "segm", "keypoints", "boundary". Default: what the first predictions have, or, where
            nothing was predicted, what the instances have fields for.
        distributed: collect the predictions of all processes.
        output_dir: where predictions are written; None for nowhere.
        max_dets_per_image: how many boxes and masks of an image count; None as above.
        use_fast_impl: detectron2's compiled evaluation where it is built.
        kpt_oks_sigmas: (K,) standard deviation of each keypoint, relative to object scale, or "coco" or "uniform"; see
            `mrcnn_ext.data.keypoint_sigmas`.
        allow_cached_coco: taken for detectron2's configs; nothing is cached.

    Raises:
        FileNotFoundError: the annotations are missing.
        ValueError: an annotation cannot be used, or sigmas are missing, or not one per keypoint.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: list[float] | str = (),
        allow_cached_coco=None,
    ):
        # Not super().__init__, which reads the file as it is, writes a cached one for data registered in Python, moves
        # their keypoints and adds to their metadata.
        self._logger = logging.getLogger(__name__)
        self.dataset_name = dataset_name
        self.records, self.evaluated_tasks = None, ()  # of the last evaluation, in the main process
        self.seconds = 0.0  # from its first image to its last
        self._distributed = distributed
        self._output_dir = output_dir
        self._tasks = tuple(tasks) if tasks is not None else None
        self._use_fast_impl = use_fast_impl and _FastCOCOeval is not None
        self._most = max_dets_per_image
        self._cpu_device = torch.device("cpu")
        self._metadata = MetadataCatalog.get(dataset_name)
        self._coco_api = TruthCOCO(coco_content(dataset_name))
        self._do_evaluation = "annotations" in self._coco_api.dataset
        self._leave_out_boundary(dataset_name)
        names = self._metadata.get("keypoint_names", ())
        kpt_oks_sigmas = named_sigmas(kpt_oks_sigmas, names, f"dataset {dataset_name!r}")
        self._kpt_oks_sigmas = list(kpt_oks_sigmas) or list(self._metadata.get("keypoint_oks_sigmas", ()))
        if self._do_evaluation and (tasks is None or "keypoints" in tasks):
            annotations = self._coco_api.anns.values()
            counts = {len(a["keypoints"]) // 3 for a in annotations if "keypoints" in a}
            if counts or tasks is not None:
                self._kpt_oks_sigmas = oks_sigmas(
                    self._kpt_oks_sigmas, names, counts, f"dataset {dataset_name!r}"
                )

    @property
    def truth(self) -> TruthCOCO:
        return self._coco_api

    @property
    def metadata(self):
        return self._metadata

    @property
    def sigmas(self) -> list[float]:
        return self._kpt_oks_sigmas

    def reset(self):
        super().reset()
        self._started = time.perf_counter()
        self._fields: set[str] = set()  # of instances, of which there may be none

    def _leave_out_boundary(self, dataset_name: str):
        """Without masks in the data there is no boundary AP."""
        annotations = self._coco_api.dataset.get("annotations", ())
        has_masks = any(a.get("segmentation") and not a["iscrowd"] for a in annotations)
        if self._tasks and "boundary" in self._tasks and annotations and not has_masks:
            self._tasks = tuple(task for task in self._tasks if task != "boundary")
            self._logger.warning(
                "TEST.BOUNDARY_AP (task 'boundary') is left out for dataset %r: none of its objects has a segmentation",
                dataset_name,
            )

    def process(self, inputs, outputs):
        for input, output in zip(inputs, outputs, strict=True):
            image_id = input["image_id"]
            image_id = image_id.item() if isinstance(image_id, np.generic) else image_id
            prediction = {"image_id": image_id}
            if "instances" in output:
                self._fields.update(output["instances"].get_fields())
                prediction["instances"] = instances_to_coco_json(output["instances"], image_id)
            if "proposals" in output:
                prediction["proposals"] = output["proposals"].to(self._cpu_device)
            if len(prediction) > 1:
                self._predictions.append(prediction)
        self.seconds = time.perf_counter() - self._started

    def _eval_predictions(self, predictions, img_ids=None):
        records = [record for prediction in predictions for record in prediction["instances"]]
        tasks = self._tasks or self._tasks_from_predictions(records)
        if not (self._tasks or records):
            kinds = {"bbox": "pred_boxes", "segm": "pred_masks", "keypoints": "pred_keypoints"}
            tasks = [task for task, field in kinds.items() if task == "bbox" or field in self._fields]
        self._to_dataset_ids(records)
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info("Saving results to %s", path)
            with replacing(path, "w") as file:
                json.dump(records, file)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        self.records, self.evaluated_tasks = records, tuple(tasks)
        names = self._metadata.get("thing_classes")
        for task in sorted(tasks, key=lambda task: (task == "boundary", task)):
            coco_eval = self._evaluate(records, task, img_ids)
            kind = "segm" if task == "boundary" else task
            self._results[task] = self._derive_coco_results(coco_eval, kind, names)
        thresholds = self._metadata.get("pck_thresholds", ())
        if "keypoints" in tasks and thresholds:
            joints = self._metadata.get("keypoint_names", ())
            self._results["pck"] = pose_metrics(self._coco_api, records, thresholds, joints)
            shown = {
                key: value for key, value in self._results["pck"].items() if key.split("-")[-1] not in joints
            }
            self._logger.info("PCK and jitter:\n%s", create_small_table(shown))

    def _to_dataset_ids(self, records):
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return
        ids = {k: dataset_id for dataset_id, k in contiguous.items()}
        for record in records:
            if record["category_id"] not in ids:
                raise ValueError(
                    f"a prediction is of class {record['category_id']}, but the dataset has {len(ids)} classes"
                )
            record["category_id"] = ids[record["category_id"]]

    def _evaluate(self, records, task, img_ids):
        is_boundary = task == "boundary"
        fast = self._use_fast_impl and not is_boundary
        options = {
            "sigmas": self._kpt_oks_sigmas,
            "most": self._most,
            "image_ids": img_ids,
            "evaluation_class": BoundaryCOCOeval if is_boundary else _FastCOCOeval if fast else COCOeval,
        }
        if is_boundary:
            self._logger.info("Boundary AP, as segm:")
        coco_eval = evaluate_task(self._coco_api, records, "segm" if is_boundary else task, **options)
        if task == "keypoints" and any("keypoint_score" in record for record in records):
            records = [
                {**record, "score": record.get("keypoint_score", record["score"])} for record in records
            ]
            self._logger.info("Keypoint AP, ranked by the scores of the keypoints:")
            coco_eval = evaluate_task(self._coco_api, records, task, **options)
        return coco_eval


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
