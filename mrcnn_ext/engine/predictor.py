"""The predictor for one image and a yaml config."""

from functools import partial

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from .checkpoint import Checkpointer
from .description import ABOUT, metadata_of
from .errors import UserError
from .int8 import int8_from_config
from .settings import building, check_takes_images
from .setup import complete, naming_unknown_objects
from .trainer import Trainer, accelerated

__all__ = ["Predictor"]


class Predictor(DefaultPredictor):
    """detectron2's `DefaultPredictor`, to be put in its place: the same argument, attributes and call.

    Adds to it: ``MODEL.ACCELERATE`` and with it ``MODEL.ACCELERATE_INT8``; ``DATASETS.COCO_FORMAT``; weights that
    are checked against the model and run nothing, the moving average among them (``SOLVER.EMA_DECAY``); the names
    of classes and keypoints that a checkpoint of this package holds, where ``DATASETS.TEST`` has none; the input of
    a timm backbone (``MODEL.TIMM.INPUT``); the CPU, with a warning, where there is no GPU.

    For many images, videos and datasets see `mrcnn_ext.inference.predict`.

    Args:
        cfg (CfgNode): with ``MODEL.WEIGHTS``. Our keys may be missing: they have their defaults.
        trust: run the code that the checkpoint may hold.

    Attributes:
        cfg, model, aug, input_format: as DefaultPredictor's.
        metadata (Metadata): names of classes and keypoints.

    Raises:
        UserError: the config or the weights are wrong.
    """

    def __init__(self, cfg, trust: bool = False):
        # Not DefaultPredictor's own: it builds the model with whatever weights fit.
        self.cfg = cfg = complete(cfg)
        cfg.defrost()
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT must be 'RGB' or 'BGR' for a Predictor, got {cfg.INPUT.FORMAT!r}")
        with naming_unknown_objects(cfg), building("the model"):
            self.model = build_model(cfg)
        check_takes_images(self.model)
        self.model.eval()
        if cfg.MODEL.CHANNELS_LAST:
            self.model.to(memory_format=torch.channels_last)
        checkpointer = Checkpointer(
            self.model, allow_partial=cfg.MODEL.ALLOW_PARTIAL_WEIGHTS, trust=trust, for_inference=True
        )
        loaded = checkpointer.load(cfg.MODEL.WEIGHTS)
        self.metadata = _metadata(cfg.DATASETS.TEST, loaded.get(ABOUT))
        if cfg.MODEL.ACCELERATE:
            int8 = int8_from_config(cfg.MODEL.ACCELERATE_INT8, partial(Trainer.build_test_loader, cfg))
            self.model = accelerated(self.model, int8=int8)
        self.aug = T.ResizeShortestEdge(
            [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST
        )
        self.input_format = cfg.INPUT.FORMAT


def _metadata(datasets, about):
    """Of the first dataset; what a checkpoint says of itself where that has no names."""
    name = datasets[0] if datasets else "__unused"
    metadata = MetadataCatalog.get(name)
    if about is not None and (name not in DatasetCatalog.list() or not metadata.get("thing_classes")):
        return metadata_of(about)
    return metadata
