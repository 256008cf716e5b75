"""Tables of results beside the results of an evaluation: see :mod:`mrcnn_ext.evaluation.result_tables`."""

import logging
import os
from collections.abc import Mapping

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..evaluation.result_tables import result_tables, write_tables

__all__ = ["write_result_tables"]


def write_result_tables(results: Mapping, names: list[str], folder: str) -> list[str]:
    """Writes ``<folder>/<dataset>/results.{csv,md,png}`` of each evaluated dataset, in the main process.

    What goes wrong is logged and ends nothing: an evaluation is worth more than its tables.

    Args:
        results: of detectron2's ``DefaultTrainer.test``: of the dataset, or of each by its name if there are several.
        names: of the evaluated datasets.
        folder: where evaluators write predictions.

    Returns:
        Paths of the files.
    """
    if not comm.is_main_process():
        return []
    by_name = {names[0]: results} if len(names) == 1 else results
    logger = logging.getLogger(__name__)
    written: list[str] = []
    for name in names:
        try:
            tables = result_tables(by_name.get(name) or {}, _cityscapes_split(name))
            if tables:
                paths = write_tables(tables, os.path.join(folder, name), name)
                logger.info("Tables of the results: %s", ", ".join(paths))
                written += paths
        except Exception:
            logger.exception("The tables of the results on %s could not be written", name)
    return written


def _cityscapes_split(name: str) -> str:
    """ "val", "test" or what the folder of the ground truth is called; "" of another evaluator's data."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "cityscapes_instance":
        return ""
    return os.path.basename(os.path.normpath(metadata.gt_dir)) or "val"
