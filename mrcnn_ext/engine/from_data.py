"""Keys of a config that follow from its data, where nobody has said otherwise."""

import logging

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from omegaconf import OmegaConf

from .checks import names_of

__all__ = ["UNSAID", "follow_data", "follow_data_lazily", "mark_unsaid"]

UNSAID = -1  # no value that a config could have
_KEYS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "thing_classes",
    "MODEL.RETINANET.NUM_CLASSES": "thing_classes",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "keypoint_names",
}


def mark_unsaid(cfg: CfgNode):
    """Marks the keys above, so that `follow_data` sees which of them have been set in between.

    Args:
        cfg: with its defaults; changed.

    Returns:
        dict: the defaults of the keys, for `follow_data`.
    """
    defaults = {key: _get(cfg, key) for key in _KEYS}
    for key in defaults:
        _set(cfg, key, UNSAID)
    return defaults


def follow_data(cfg: CfgNode, defaults: dict):
    """Sets the numbers of classes and of keypoints by the first dataset of ``DATASETS.TRAIN``, or of TEST, whose names
    are known; says so where they are not the defaults. What has been set since `mark_unsaid` stays.

    Args:
        cfg: changed.
        defaults: of `mark_unsaid`.
    """
    registered = MetadataCatalog.list()
    for key, default in defaults.items():
        if _get(cfg, key) != UNSAID:
            continue
        _set(cfg, key, default)
        if key.endswith("NUM_KEYPOINTS") and not cfg.MODEL.KEYPOINT_ON:
            continue
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            names = MetadataCatalog.get(name).get(_KEYS[key]) if name in registered else None
            if names and len(names) != default:
                if "RETINANET" not in key or cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
                    _tell(key, names, name)
                _set(cfg, key, len(names))
            if names:
                break


_LAZY_KEYS = {
    "model.roi_heads.num_classes": "thing_classes",
    "model.num_classes": "thing_classes",  # of RetinaNet
    "model.roi_heads.keypoint_head.num_keypoints": "keypoint_names",
}


def follow_data_lazily(cfg, overrides):
    """As `follow_data`, for the datasets of a LazyConfig.

    Args:
        cfg: changed.
        overrides: key=value; what these set stays.
    """
    datasets = [*names_of(cfg.dataloader.get("train")), *names_of(cfg.dataloader.get("test"))]
    said = {override.partition("=")[0] for override in overrides}
    for key, kind in _LAZY_KEYS.items():
        number = OmegaConf.select(cfg, key)
        if number is None or key in said:
            continue
        for name in datasets:
            names = MetadataCatalog.get(name).get(kind) if name in MetadataCatalog.list() else None
            if names and len(names) != number:
                _tell(key, names, name)
                OmegaConf.update(cfg, key, len(names))
            if names:
                break


def _tell(key, names, dataset):
    # A warning: nothing less is shown before the config says where logs go.
    if comm.is_main_process():
        listed = ", ".join([*names[:5], "..."] if len(names) > 5 else names)
        logging.getLogger(__name__).warning("%s is %d, by dataset %r (%s)", key, len(names), dataset, listed)


def _get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _set(cfg, key, value):
    *sections, last = key.split(".")
    _get(cfg, ".".join(sections))[last] = value
