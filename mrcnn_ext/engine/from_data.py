"""Keys of a config that follow from its data, where nobody has said otherwise."""

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.utils import comm
from omegaconf import DictConfig, OmegaConf

from ..data.keypoint_sigmas import named_sigmas
from .checks import names_of
from .errors import UserError

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
    _name_sigmas(cfg)


def _name_sigmas(cfg: CfgNode):
    """Numbers for ``TEST.KEYPOINT_OKS_SIGMAS: ["coco"]``."""
    registered = MetadataCatalog.list()
    keypoints = (
        MetadataCatalog.get(name).get("keypoint_names")
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        if name in registered
    )
    try:
        sigmas = named_sigmas(
            cfg.TEST.KEYPOINT_OKS_SIGMAS, next(filter(None, keypoints), ()), "TEST.KEYPOINT_OKS_SIGMAS"
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    cfg.TEST.KEYPOINT_OKS_SIGMAS = list(sigmas)


# Of detectron2's common files and ours; the second one is the keypoint models'.
_LAZY_KEYS = {
    "model.roi_heads.num_classes": ("thing_classes", (80, 1)),
    "model.num_classes": ("thing_classes", (80,)),
    "model.roi_heads.keypoint_head.num_keypoints": ("keypoint_names", (17,)),
}
_FLIPS = "dataloader.train.mapper.keypoint_hflip_indices"


def follow_data_lazily(cfg: DictConfig, overrides: Sequence[str] = (), any_number: bool = False):
    """As `follow_data`, for a LazyConfig; the keypoints that change places in a mirrored image follow too.

    What ``overrides`` set stays, and so does a number that is not that of detectron2's common files.

    Args:
        cfg: changed.
        overrides: of the command line.
        any_number: the config's numbers give way whatever they are.
    """
    said = {override.partition("=")[0].lstrip("+") for override in overrides}
    registered = MetadataCatalog.list()
    train = names_of(cfg.dataloader.get("train"))
    datasets = [name for name in (*train, *names_of(cfg.dataloader.get("test"))) if name in registered]
    for key, (kind, usual) in _LAZY_KEYS.items():
        value = None if key in said else OmegaConf.select(cfg, key)
        if value is None or _is_interpolated(cfg, key) or not (any_number or value in usual):
            continue
        name = next((name for name in datasets if MetadataCatalog.get(name).get(kind)), None)
        names = MetadataCatalog.get(name).get(kind) if name else ()
        if names and len(names) != value:
            _tell(key, names, name)
            OmegaConf.update(cfg, key, len(names))
    train = [
        name for name in train if name in datasets and MetadataCatalog.get(name).get("keypoint_flip_map")
    ]
    mapper = OmegaConf.select(cfg, "dataloader.train.mapper")
    if train and _FLIPS not in said and mapper is not None and mapper.get("use_keypoint"):
        flips = create_keypoint_hflip_indices(train)
        if list(mapper.get("keypoint_hflip_indices") or ()) != flips:
            _log("%s is that of dataset %r", _FLIPS, train[0])
            mapper.keypoint_hflip_indices = flips


def _is_interpolated(cfg: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    return OmegaConf.is_interpolation(OmegaConf.select(cfg, parent), last)


def _tell(key, names, dataset):
    listed = ", ".join([*names[:5], "..."] if len(names) > 5 else names)
    _log("%s is %d, by dataset %r (%s)", key, len(names), dataset, listed)


def _log(*message):
    # A warning: nothing less is shown before the config says where logs go.
    if comm.is_main_process():
        logging.getLogger(__name__).warning(*message)


def _get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _set(cfg, key, value):
    *sections, last = key.split(".")
    _get(cfg, ".".join(sections))[last] = value
