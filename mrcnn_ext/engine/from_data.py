"""Keys of a config that follow from its data, where nobody has said otherwise."""

import contextlib
import logging

from detectron2.data import MetadataCatalog

__all__ = ["follow_data", "unsaid_keys"]

_UNSAID = -1  # no value that a config could have
_KEYS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": "thing_classes",
    "MODEL.RETINANET.NUM_CLASSES": "thing_classes",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "keypoint_names",
}


@contextlib.contextmanager
def unsaid_keys(cfg):
    """Gives a set that holds, after the block, those of the keys above that were not set in it.

    Args:
        cfg (CfgNode): with its defaults; those it has again where nothing was set.
    """
    defaults = {key: _get(cfg, key) for key in _KEYS}
    for key in defaults:
        _set(cfg, key, _UNSAID)
    unsaid = set()
    try:
        yield unsaid
    finally:
        for key, default in defaults.items():
            if _get(cfg, key) == _UNSAID:
                _set(cfg, key, default)
                unsaid.add(key)


def follow_data(cfg, unsaid):
    """Sets the numbers of classes and of keypoints by the first dataset of ``DATASETS.TRAIN``, or of TEST, whose names
    are known; says so where they are not the defaults.

    Args:
        cfg (CfgNode): changed.
        unsaid (set[str]): keys that may be set, of `unsaid_keys`.
    """
    registered = MetadataCatalog.list()
    for key in sorted(unsaid):
        if key.endswith("NUM_KEYPOINTS") and not cfg.MODEL.KEYPOINT_ON:
            continue
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            names = MetadataCatalog.get(name).get(_KEYS[key]) if name in registered else None
            if names and len(names) != _get(cfg, key):
                logging.getLogger(__name__).info(
                    "%s is %d, by dataset %r (%s%s)",
                    key,
                    len(names),
                    name,
                    ", ".join(names[:5]),
                    ", ..." if len(names) > 5 else "",
                )
                _set(cfg, key, len(names))
            if names:
                break


def _get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _set(cfg, key, value):
    *sections, last = key.split(".")
    _get(cfg, ".".join(sections))[last] = value
