"""``--recipe auto`` for yaml configs."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from ..config import add_mrcnn_ext_config
from ..config_files import CONFIGS
from .errors import UserError
from .recipe import Settings
from .recipe_file import Recipe, choose_for
from .yaml_files import merge_from_file

__all__ = ["PUBLISHED_RATES", "apply_recipe", "is_shipped"]

_KEYS = {
    "batch_size": "SOLVER.IMS_PER_BATCH",
    "max_iter": "SOLVER.MAX_ITER",
    "steps": "SOLVER.STEPS",
    "warmup": "SOLVER.WARMUP_ITERS",
    "learning_rate": "SOLVER.BASE_LR",
    "train_sizes": "INPUT.MIN_SIZE_TRAIN",
    "max_train_size": "INPUT.MAX_SIZE_TRAIN",
    "test_size": "INPUT.MIN_SIZE_TEST",
    "max_test_size": "INPUT.MAX_SIZE_TEST",
    "anchor_sizes": "MODEL.ANCHOR_GENERATOR.SIZES",
    "anchor_ratios": "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
}
# For batches of 16, where the config has no rate of its own: detectron2's configs, and Swin Transformer's.
PUBLISHED_RATES = {"SGD": 0.02, "AdamW": 1e-4}
_PUBLISHED_BATCH = 16


def apply_recipe(cfg: CfgNode, config_file: str, opts: Sequence[str] = ()) -> Recipe:
    """Chooses schedule, learning rate, image sizes and anchors by the datasets of ``DATASETS.TRAIN``, and sets them.

    What the command line or the user's own files set to something else than the configs that come with mrcnn_ext and
    detectron2 stays.

    Args:
        cfg: of `load_config`; changed.
        config_file, opts: those it was loaded from.

    Returns:
        Recipe: to be told and written.

    Raises:
        UserError: the data cannot be read, or there are none.
    """
    reference = _reference(config_file)
    usual = _settings(reference)
    if reference.SOLVER.BASE_LR == get_cfg().SOLVER.BASE_LR:  # which suits nobody
        usual.learning_rate, usual.batch_size = PUBLISHED_RATES[cfg.SOLVER.OPTIMIZER], _PUBLISHED_BATCH
    for key in ("sqrt_scaling", "strides", "square"):
        setattr(usual, key, getattr(_settings(cfg), key))
    if not _settings(cfg).anchor_sizes:
        usual.anchor_sizes = []
    if usual.square:
        usual.train_sizes = ()
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        usual.steps = ()
    on_command_line = set(opts[::2])
    set_by_user = {
        name: _plain(_get(cfg, key))
        for name, key in _KEYS.items()
        if key in on_command_line or _get(cfg, key) != _get(reference, key)
    }
    set_by_user["batch_size"] = cfg.SOLVER.IMS_PER_BATCH
    choices = choose_for(
        cfg.DATASETS.TRAIN,
        usual,
        set_by_user,
        with_empty=not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
    )
    for choice in choices:
        if choice.changed:
            _set(cfg, _KEYS[choice.name], choice.value)
    chosen = {_KEYS[choice.name]: choice.value for choice in choices}

    def content(lines: list[str], base: str) -> str:
        nested: dict = {"_BASE_": base} if base else {}
        for key, value in chosen.items():
            *sections, last = key.split(".")
            node = nested
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = list(value) if isinstance(value, tuple) else value
        comments = "".join(f"# {line}\n" for line in ["Chosen by --recipe auto.", *lines])
        return comments + yaml.safe_dump({**nested, "VERSION": 2}, sort_keys=False, default_flow_style=None)

    return Recipe(choices, _KEYS, usual, "recipe.yaml", content, config_file)


def is_shipped(path: str) -> bool:
    """Whether a config comes with mrcnn_ext or detectron2."""
    path = os.path.realpath(path)
    found = importlib.util.find_spec("detectron2")
    places = (found.submodule_search_locations if found else None) or ()
    folders = [str(CONFIGS), *(os.path.join(place, "model_zoo", "configs") for place in places)]
    return any(path.startswith(os.path.realpath(folder) + os.sep) for folder in folders)


def _reference(config_file: str) -> CfgNode:
    """Defaults, and those of the files that come with mrcnn_ext and detectron2."""
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    if config_file:
        try:
            merge_from_file(cfg, config_file, only=is_shipped)
        except UserError:  # it holds code, which was trusted: all it says is the user's
            pass
    return cfg


def _settings(cfg: CfgNode) -> Settings:
    model, solver = cfg.MODEL, cfg.SOLVER
    retina = model.META_ARCHITECTURE == "RetinaNet"
    features = model.RETINANET.IN_FEATURES if retina else model.RPN.IN_FEATURES
    has_anchors = model.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator" and (
        retina or model.PROPOSAL_GENERATOR.NAME == "RPN"
    )
    return Settings(
        solver.IMS_PER_BATCH,
        solver.MAX_ITER,
        solver.WARMUP_ITERS,
        tuple(solver.STEPS),
        solver.BASE_LR,
        solver.OPTIMIZER == "AdamW",
        tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        cfg.INPUT.MAX_SIZE_TRAIN,
        cfg.INPUT.MIN_SIZE_TEST,
        cfg.INPUT.MAX_SIZE_TEST,
        [list(level) for level in model.ANCHOR_GENERATOR.SIZES] if has_anchors else [],
        [list(level) for level in model.ANCHOR_GENERATOR.ASPECT_RATIOS],
        [_stride(name) for name in features],
        cfg.INPUT.LSJ.SIZE if cfg.INPUT.LSJ.ENABLED else 0,
    )


def _stride(feature: str) -> int:
    """The number at the end of a feature's name is the logarithm of its stride."""
    number = re.search(r"\d+$", feature)
    if number is None:
        raise UserError(
            f"--recipe: the stride of the feature {feature!r} is not known: it is no p2, res4, ..."
        )
    return 2 ** int(number[0])


def _plain(value):
    return (
        [list(v) if isinstance(v, (list, tuple)) else v for v in value] if isinstance(value, list) else value
    )


def _get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _set(cfg, key, value):
    *sections, last = key.split(".")
    _get(cfg, ".".join(sections))[last] = value
