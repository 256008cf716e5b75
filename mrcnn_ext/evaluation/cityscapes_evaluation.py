"""Instance segmentation metrics of Cityscapes."""

import contextlib
import io

from detectron2.evaluation import CityscapesInstanceEvaluator as _CityscapesInstanceEvaluator

__all__ = ["CityscapesInstanceEvaluator"]


class CityscapesInstanceEvaluator(_CityscapesInstanceEvaluator):
    """detectron2's evaluator, which fails clearly without masks, logs its table and leaves no file behind.

    AP is averaged over the eight classes and the IoU thresholds 0.5 to 0.95; instances below 100 pixels are
    ignored, whatever the size of the image. Runs on one machine only.
    """

    def process(self, inputs, outputs):
        for output in outputs:
            if "instances" in output and not output["instances"].has("pred_masks"):
                raise ValueError("Cityscapes instance evaluation needs masks: set MODEL.MASK_ON to True")
        super().process(inputs, outputs)

    def evaluate(self):
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
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
