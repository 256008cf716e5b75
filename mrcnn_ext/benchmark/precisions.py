"""Average precisions of whatever runs a model, on a dataset with annotations."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from ..data import load_dataset
from ..engine.errors import UserError
from ..engine.evaluated_names import check_evaluated_names
from ..evaluation import COCOEvaluator
from ..inference import LoadedModel

__all__ = ["COLUMNS", "DatasetPrecisions"]

_FIELDS = {"bbox": "pred_boxes", "segm": "pred_masks", "keypoints": "pred_keypoints"}
# Of each task, in a table.
COLUMNS = {"bbox": "box_AP", "segm": "mask_AP", "keypoints": "keypoint_AP"}


class DatasetPrecisions:
    """COCO's average precisions on all images of a dataset, of one form of a model after the other.

    Args:
        loaded: the model, of `load_predictor`, whose images all forms take.
        dataset: a registered one in COCO's format.
        found: what the model gives for an image: its masks and keypoints are evaluated where it and the data have any.

    Raises:
        UserError: the dataset has no annotations, or other classes or keypoints than the model.
        ValueError: it cannot be read.
    """

    def __init__(self, loaded: LoadedModel, dataset: str, found: Instances):
        self._loaded = loaded
        self._records = load_dataset(dataset)
        annotations = [annotation for record in self._records for annotation in record.get("annotations", ())]
        if not annotations:
            raise UserError(f"dataset {dataset!r} has no annotations to evaluate by")
        learnt = {"metadata": loaded.metadata.as_dict()}
        check_evaluated_names(learnt, "that is run", [dataset], found.has("pred_keypoints"))
        has = {
            "bbox": True,
            "segm": any("segmentation" in annotation for annotation in annotations),
            "keypoints": bool(MetadataCatalog.get(dataset).get("keypoint_names")),
        }
        tasks = tuple(task for task, field in _FIELDS.items() if has[task] and found.has(field))
        self._evaluator = COCOEvaluator(dataset, tasks, distributed=False)

    def __call__(self, run: Callable[[list[dict]], list[dict]]) -> dict[str, float]:
        """
        Args:
            run: takes and gives lists of one in detectron2's format.

        Returns:
            AP in points by `COLUMNS`; NaN without an object.
        """
        self._evaluator.reset()
        for record in self._records:
            image = self._loaded.read(record["file_name"])
            given = {"image": image, "height": record["height"], "width": record["width"]}
            with torch.no_grad():
                self._evaluator.process([record], run([given]))
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its tables
            results = self._evaluator.evaluate()
        return {column: float(results[task]["AP"]) for task, column in COLUMNS.items() if task in results}
