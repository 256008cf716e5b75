"""Instance segmentation metrics of Cityscapes."""

from collections import OrderedDict

from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from .bitmap_rle import encode_masks
from .cityscapes_metrics import check_labels, instance_precisions, store_predictions

__all__ = ["CityscapesInstanceEvaluator"]


class CityscapesInstanceEvaluator(_CityscapesInstanceEvaluator):
    """detectron2's evaluator, which fails clearly without masks, logs its table and leaves no file behind.

    AP is averaged over the eight classes and the IoU thresholds 0.5 to 0.95; instances below 100 pixels are
    ignored, whatever the size of the image. Runs on one machine only.

    The result is that of cityscapesscripts; see :func:`.cityscapes_metrics.instance_precisions`. Masks are ranked by
    ``mask_scores`` where predictions have them.

    Raises:
        ValueError: the dataset has a class of which Cityscapes has no instances.
    """

    def __init__(self, dataset_name):
        super().__init__(dataset_name)
        check_labels(self._metadata.get("thing_classes", ()))

    def process(self, inputs, outputs):
        for input, output in zip(inputs, outputs, strict=True):
            names, scores, rles = [], [], []
            if "instances" in output:
                instances = output["instances"]
                if not instances.has("pred_masks"):
                    raise ValueError("Cityscapes instance evaluation needs masks: set MODEL.MASK_ON to True")
                rles = encode_masks(instances.pred_masks)
                scores = instances.get("mask_scores" if instances.has("mask_scores") else "scores").cpu()
                names = [self._metadata.thing_classes[label] for label in instances.pred_classes.tolist()]
            store_predictions(self._temp_dir, input["file_name"], names, scores, rles)

    def evaluate(self):
        comm.synchronize()
        if comm.get_rank() > 0:
            return None
        try:
            gt_dir = PathManager.get_local_path(self._metadata.gt_dir)
            precisions, table = instance_precisions(self._temp_dir, gt_dir)
        finally:
            self._working_dir.cleanup()
        self._logger.info("Cityscapes instance segmentation:\n%s", table)
        return OrderedDict(segm=precisions)
