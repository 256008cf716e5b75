"""What a checkpoint says of itself: config, classes, keypoints, versions. Whoever has the file needs nothing else."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

import yaml
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig, OmegaConf

from .. import __version__
from ..config import add_mrcnn_ext_config
from ..data.places import find_again
from .errors import UserError
from .weight_files import ABOUT, HOW_TO_TRUST, read_weights

__all__ = [
    "ABOUT",
    "check_targets",
    "config_of",
    "data_of",
    "describe",
    "describe_lazily",
    "instantiate_described",
    "metadata_of",
    "read_description",
]

_FORMAT = 1
_NAMES = (
    *("thing_classes", "thing_dataset_id_to_contiguous_id", "keypoint_names", "keypoint_flip_map"),
    *("keypoint_connection_rules", "keypoint_oks_sigmas", "thing_colors"),
)
_OF_EVALUATORS = ("_target_", "tasks", "max_dets_per_image", "kpt_oks_sigmas")
# Modules whose classes and functions a LazyConfig in a file may call: they make models, resize images and evaluate.
_ALLOWED = (
    *("detectron2.modeling.", "detectron2.layers.", "detectron2.structures.", "detectron2.data.transforms."),
    *("detectron2.data.dataset_mapper", "mrcnn_ext.modeling.", "mrcnn_ext.layers.", "torch.nn.modules."),
    *("detectron2.evaluation.", "mrcnn_ext.evaluation.", "mrcnn_ext.data.mapper"),
)


def describe(cfg: CfgNode) -> dict:
    """Of a training with a yaml config."""
    return {**_base("yaml", (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)), "config": cfg.dump()}


def describe_lazily(cfg: DictConfig, names) -> dict:
    """Of a training with a LazyConfig: its model, how images are prepared for it, and its device.

    Args:
        cfg: of the training.
        names: of its datasets.
    """
    about = _base("lazy", names)
    try:
        parts = {
            "model": _plain(cfg.model),
            "mapper": _plain(OmegaConf.select(cfg, "dataloader.test.mapper")),
            "device": cfg.train.device,
            "datasets": _test_datasets(cfg),
            "evaluator": _evaluator(cfg),
        }
        return {**about, "config": yaml.safe_dump(parts)}
    except (TypeError, AttributeError, yaml.YAMLError) as error:
        logging.getLogger(__name__).warning(
            "Checkpoints do not hold the config, which has values that are not plain (%s): keep it beside them",
            error,
        )
        return about


def _test_datasets(cfg):
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names", default=[])
    return [names] if isinstance(names, str) else list(names)


def _evaluator(cfg):
    """What its results depend on; not where they are written."""
    evaluator = OmegaConf.select(cfg, "dataloader.evaluator")
    return evaluator and {key: _plain(evaluator[key]) for key in _OF_EVALUATORS if key in evaluator}


def _base(kind, datasets):
    metadata, data = {}, {}
    for name in datasets:
        known = MetadataCatalog.get(name) if name in MetadataCatalog.list() else {}
        if entry := known.get("coco_format"):
            data[name] = [name, *_plain_value(entry)]
        for key in _NAMES:
            if key not in metadata and (value := known.get(key)) is not None and len(value):
                metadata[key] = _plain_value(value)
    packages = {"python": sys.version.split()[0], "mrcnn_ext": __version__}
    for name in ("torch", "torchvision", "detectron2", "timm"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "format": _FORMAT,
        "kind": kind,
        "metadata": metadata,
        "data": list(data.values()),
        "versions": packages,
    }


def _plain_value(value):
    if isinstance(value, Mapping):
        return {key: _plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_value(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _plain(node):
    """A LazyConfig as plain values, with the names of what it calls; interpolations are put in."""
    if isinstance(node, DictConfig):
        return {str(key): _plain(node[key]) for key in node}
    if isinstance(node, (ListConfig, list, tuple)):
        return [_plain(item) for item in node]
    if callable(node):
        return _convert_target_to_string(node)
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"{type(node).__name__} {node!r:.60}")


def read_description(path: str, trust: bool = False) -> dict:
    """
    Args:
        path: a checkpoint.
        trust: as of `read_weights`.

    Returns:
        What it says of itself.

    Raises:
        UserError: it cannot be read, or does not say; or there is no such file.
    """
    try:
        content = read_weights(path, trust)
    except FileNotFoundError:
        raise UserError(f"weights file not found: {path}") from None
    about = content.get(ABOUT) if isinstance(content, Mapping) else None
    if not isinstance(about, Mapping) or "config" not in about:
        raise UserError(
            f"{path} does not hold its config, as checkpoints of mrcnn_ext 0.2 and later do: give --config-file"
        )
    return dict(about)


def config_of(about: Mapping, path: str) -> CfgNode:
    """The yaml config of a description, which needs no dataset to be there.

    Raises:
        UserError: it is of a LazyConfig, or has keys that this version does not know.
    """
    if about["kind"] != "yaml":
        raise UserError(f"{path} was trained with a LazyConfig: give --config-file")
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.MODEL.TIMM.INPUT = "config"  # before there was the key, checkpoints were trained as their config says
    try:
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(about["config"])))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: its config does not fit this version ({error}): give --config-file"
        ) from error
    cfg.DATASETS.COCO_FORMAT = []
    cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS = False, ""
    cfg.TEST.KEYPOINT_OKS_SIGMAS = list(cfg.TEST.KEYPOINT_OKS_SIGMAS) or list(
        about["metadata"].get("keypoint_oks_sigmas", ())
    )
    return cfg


def data_of(about: Mapping, path: str, names: Iterable[str]) -> list[list]:
    """Entries of ``DATASETS.COCO_FORMAT`` for data that a checkpoint was trained with, and that is not registered.

    Args:
        about: what the checkpoint says of itself.
        path: of the checkpoint, near which the data are looked for too, if both were moved.
        names: of the data wanted; those that the checkpoint does not know are left out.

    Raises:
        UserError: data are not there any more.
    """
    data = about.get("data")
    if data is None and about["kind"] == "yaml":  # of a version that had not the key
        data = yaml.safe_load(about["config"])["DATASETS"].get("COCO_FORMAT")
    known = {entry[0]: list(entry) for entry in data or ()}
    found = []
    for name in dict.fromkeys(names):
        if name not in known or name in DatasetCatalog.list():
            continue
        entry = find_again(known[name], os.path.dirname(os.path.abspath(path)))
        for place, is_there in ((entry[1], os.path.isfile), (entry[2], os.path.isdir)):
            if not is_there(place):
                raise UserError(
                    f"{path} was trained with the dataset {name!r}, of which {place} is missing, there and beside the "
                    "checkpoint: give data=FILE, a data file of where it is now"
                )
        found.append(entry)
    return found


def metadata_of(about: Mapping) -> Metadata:
    """Names of classes and keypoints."""
    known = {key: value for key, value in about["metadata"].items() if key in _NAMES}
    return Metadata().set(**known)


def instantiate_described(part, path: str, trust: bool = False):
    """Makes what a part of a LazyConfig in a checkpoint describes.

    Raises:
        UserError: it calls something else than components of detectron2, mrcnn_ext and PyTorch, and is not trusted.
    """
    if not trust:
        check_targets(part, path)
    return instantiate(OmegaConf.create(part, flags={"allow_objects": True}))


def check_targets(part, path: str) -> None:
    """
    Raises:
        UserError: a part of a LazyConfig in a checkpoint calls something else than components, or holds an expression.
    """
    if isinstance(part, Mapping):
        if "_target_" in part:
            _check_target(str(part["_target_"]), path)
        for value in part.values():
            check_targets(value, path)
    elif isinstance(part, list):
        for value in part:
            check_targets(value, path)
    elif isinstance(part, str) and "${" in part:
        raise UserError(f"{path}: its config holds the expression {part!r}, and was not used; {HOW_TO_TRUST}")


def _check_target(name, path):
    if name.startswith(("detectron2.", "mrcnn_ext.", "torch.nn.")):
        with contextlib.suppress(ImportError):
            # Where it is defined: a module's attributes may be other modules.
            if (getattr(locate(name), "__module__", None) or "").startswith(_ALLOWED):
                return
    raise UserError(
        f"{path}: its config calls {name}, which is no component of detectron2, mrcnn_ext or torch.nn, and was not "
        f"used. Give --config-file; or {HOW_TO_TRUST}"
    )
