"""``--recipe auto`` for LazyConfigs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyConfig
from detectron2.data.transforms import ResizeScale, ResizeShortestEdge
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, OmegaConf

from .checks import names_of
from .recipe import Choice, Settings
from .recipe_config import PUBLISHED_RATES, is_shipped
from .recipe_file import Recipe, choose_for

__all__ = ["apply_lazy_recipe"]

# What LazyConfigs that people write over detectron2's and ours have, unless they say otherwise.
_USUAL: dict[str, list] = {
    "batch_size": [16],
    "max_iter": [90000, 160000],
    "warmup": [1000],
    "learning_rate": list(PUBLISHED_RATES.values()),
    "train_sizes": [(640, 672, 704, 736, 768, 800), (800,)],
    "max_train_size": [1333],
    "test_size": [800],
    "max_test_size": [1333],
    "anchor_sizes": [[[32], [64], [128], [256], [512]], [[32, 64, 128, 256, 512]]],
    "anchor_ratios": [[[0.5, 1.0, 2.0]]],
}
_MAPPER = "dataloader.{}.mapper.augmentations"


def apply_lazy_recipe(cfg: DictConfig, config_file: str, overrides: Sequence[str] = ()) -> Recipe:
    """As `apply_recipe`, for a LazyConfig. The learning rate falls at the same shares of the training as before.

    Of a config that does not come with mrcnn_ext or detectron2, values other than those of their common files are the
    user's.

    Args:
        cfg: of `load_lazy_config`; changed.
        config_file, overrides: those it was loaded from.
    """
    keys = _keys(cfg)
    values = _values(cfg, keys)
    shipped = _values(LazyConfig.load(config_file), keys) if is_shipped(config_file) else None
    on_command_line = [override.partition("=")[0].lstrip("+") for override in overrides]
    usual, set_by_user = dict(shipped or values), {}
    adaptive = "Adam" in _target(cfg.optimizer)
    for name, value in values.items():
        if shipped is None and value not in _USUAL[name]:
            set_by_user[name] = value
            if name == "batch_size":
                usual[name] = _USUAL[name][0]
            elif name == "learning_rate":
                usual[name] = PUBLISHED_RATES["AdamW" if adaptive else "SGD"]
        if keys[name] in on_command_line:
            set_by_user[name] = value
    set_by_user["batch_size"] = values["batch_size"]
    square = _augmentation(cfg, "train", ResizeScale)
    settings = Settings(
        steps=(),
        sqrt_scaling=adaptive,
        strides=_strides(cfg, keys),
        square=OmegaConf.select(cfg, f"{square}.target_height") if square else 0,
        **{**dict.fromkeys(_USUAL, 0), **_NONE, **usual},
    )
    dataset = OmegaConf.select(cfg, "dataloader.train.dataset", default={})
    choices = choose_for(
        names_of(cfg.dataloader.get("train")),
        settings,
        set_by_user,
        with_empty=not dataset.get("filter_empty", True),
        min_keypoints=dataset.get("min_keypoints", 0),
    )
    choices = [choice for choice in choices if choice.name in keys]
    assignments = _assignments(choices, keys, cfg)
    for key, value in assignments.items():
        _assign(cfg, key, value)

    def content(lines: list[str], base: str) -> str:
        comments = "".join(f"# {line}\n" for line in ["Chosen by --recipe auto.", *lines])
        setters = "".join(f"_cfg.{_selected(key)} = {value!r}\n" for key, value in assignments.items())
        return (
            f"{comments}import os\n\nfrom detectron2.config import LazyConfig\n\n"
            f"_cfg = LazyConfig.load(os.path.join(os.path.dirname(__file__), {base!r}))\n{setters}"
            "globals().update({name: _cfg[name] for name in _cfg})\n"
        )

    shown_keys = {**keys, "warmup": "lr_multiplier.warmup_length, in iterations,"}
    return Recipe(choices, shown_keys, settings, "recipe.py", content, config_file)


_NONE: dict[str, list | tuple] = {"train_sizes": (), "anchor_sizes": [], "anchor_ratios": []}


def _keys(cfg: DictConfig) -> dict[str, str]:
    """The keys of the settings that the config has."""
    keys = {
        "batch_size": "dataloader.train.total_batch_size",
        "max_iter": "train.max_iter",
        "warmup": "lr_multiplier.warmup_length",
        "learning_rate": "optimizer.lr",
    }
    for part, names in (
        ("train", ("train_sizes", "max_train_size")),
        ("test", ("test_size", "max_test_size")),
    ):
        place = _augmentation(cfg, part, ResizeShortestEdge)
        if place:
            keys |= {names[0]: f"{place}.short_edge_length", names[1]: f"{place}.max_size"}
    for place in ("model.proposal_generator.anchor_generator", "model.anchor_generator"):
        keys |= {"anchor_sizes": f"{place}.sizes", "anchor_ratios": f"{place}.aspect_ratios"}
        if OmegaConf.select(cfg, keys["anchor_sizes"]) is not None:
            break
    return {name: key for name, key in keys.items() if OmegaConf.select(cfg, _selected(key)) is not None}


def _augmentation(cfg: DictConfig, part: str, kind: type) -> str:
    """Key of the first augmentation of a kind, "" if there is none."""
    place = _MAPPER.format(part)
    for number, node in enumerate(OmegaConf.select(cfg, place, default=None) or ()):
        if _target(node) == _convert_target_to_string(kind):
            return f"{place}.{number}"
    return ""


def _target(node) -> str:
    target = node.get("_target_", "")
    return target if isinstance(target, str) else _convert_target_to_string(target)


def _selected(key: str) -> str:
    """A key as OmegaConf selects by it, and Python: numbers in brackets."""
    return ".".join(part if not part.isdigit() else f"[{part}]" for part in key.split(".")).replace(".[", "[")


def _values(cfg: DictConfig, keys: dict[str, str]) -> dict:
    """Values of the settings, as `Settings` has them."""
    values: dict[str, Any] = {}
    for name, key in keys.items():
        value: Any = OmegaConf.select(cfg, _selected(key))
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if name in ("anchor_sizes", "anchor_ratios"):
            value = [list(v) for v in value] if isinstance(value[0], (list, tuple)) else [list(value)]
        elif name == "train_sizes":
            value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        elif name == "warmup":
            value = round(value * _length(cfg))
        values[name] = value
    values.setdefault("batch_size", 16)
    return values


def _length(cfg: DictConfig) -> int:
    """Iterations of which the warm-up of the schedule is a share."""
    scheduler = cfg.lr_multiplier.get("scheduler") or {}
    milestones = scheduler.get("milestones") or [0]
    return scheduler.get("num_updates") or milestones[-1] or cfg.train.max_iter


def _strides(cfg: DictConfig, keys: dict[str, str]) -> list[int]:
    place = keys.get("anchor_sizes", "").rpartition(".")[0]
    return [int(stride) for stride in OmegaConf.select(cfg, f"{place}.strides")] if place else []


def _assignments(choices: list[Choice], keys: dict[str, str], cfg: DictConfig) -> dict:
    """Values by keys of the config."""
    chosen: dict[str, Any] = {choice.name: choice.value for choice in choices if choice.changed}
    values = {keys[name]: value for name, value in chosen.items() if name != "warmup"}
    given: dict[str, Any] = {choice.name: choice.value for choice in choices}
    iterations, warmup = given.get("max_iter", 0), given.get("warmup", 0)
    if "warmup" in keys and ("warmup" in chosen or "max_iter" in chosen) and iterations:
        values[keys["warmup"]] = warmup / iterations
    head = f"{keys.get('anchor_sizes', '').rpartition('.anchor_generator')[0]}.head.num_anchors"
    if "anchor_ratios" in chosen and OmegaConf.select(cfg, head) is not None:
        values[head] = len(given["anchor_sizes"][0]) * len(chosen["anchor_ratios"][0])
    return values


def _assign(cfg: DictConfig, key: str, value):
    *parents, last = key.split(".")
    node = cfg
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
