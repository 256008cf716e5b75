"""The configs that come with the package, found wherever it is installed.

>>> from mrcnn_ext import model_zoo
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml")
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py")  # as a LazyConfig
"""

import difflib
import os
import shutil
from pathlib import Path

import torch
from detectron2 import model_zoo as detectron2_zoo  # for our LazyConfigs, which build on detectron2's
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from .config import add_mrcnn_ext_config
from .config_files import CONFIGS, find_name, get_config_file, list_configs
from .files import replacing

__all__ = [
    "detectron2_zoo",
    "fetch_weights",
    "find_config",
    "get",
    "get_config",
    "get_config_file",
    "list_configs",
    "list_detectron2_configs",
    "trained_weights",
    "zoo_name",
]

_DETECTRON2_CONFIGS = Path(detectron2_zoo.__file__).parent / "configs"


def get_config(config_path: str, trained: bool = False):
    """A config of the package.

    Args:
        config_path: its name relative to ``configs/``, ending with .yaml or .py.
        trained: ask for trained weights. There are none yet.

    Returns:
        a CfgNode for .yaml, a DictConfig for .py; both as the file says.

    Raises:
        ValueError: if there is no such config, or no trained weights for it.
    """
    file = get_config_file(config_path)
    if trained:
        raise ValueError(f"there are no trained weights for {config_path}; trained=False gives the config")
    if file.endswith(".py"):
        return LazyConfig.load(file)
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_file(file)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> torch.nn.Module:
    """The model of a config, in training mode, with the weights the config starts from.

    Args:
        config_path, trained: see `get_config`.
        device: where to put it, instead of where the config says; by default the CPU where there is no GPU.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model = build_model(cfg)
        weights = cfg.MODEL.WEIGHTS
    else:
        model = instantiate(cfg.model).to(device or cfg.train.device)
        weights = cfg.train.init_checkpoint
    DetectionCheckpointer(model).load(weights)
    return model


def list_detectron2_configs() -> list[str]:
    """Names of detectron2's own configs of models with trained weights."""
    files = [*_DETECTRON2_CONFIGS.rglob("*.yaml"), *_DETECTRON2_CONFIGS.rglob("*.py")]
    names = (path.relative_to(_DETECTRON2_CONFIGS).as_posix() for path in files)
    return sorted(name for name in names if trained_weights(name))


def find_config(name: str) -> str:
    """The config file that a command line means.

    Args:
        name: path of a file; or the name of one of our configs or of detectron2's, with or without folder and suffix.

    Returns:
        its path.

    Raises:
        ValueError: there is none of that name; the message lists those like it.
    """
    if os.path.isfile(name):
        return name
    if found := find_name(name, list_configs()):
        return get_config_file(found)
    theirs = list_detectron2_configs()
    if found := find_name(name, theirs):
        return str(_DETECTRON2_CONFIGS / found)
    # Compared as they are written: with the folder or without.
    spellings = {}
    for known in [*list_configs(), *theirs]:
        stem = known.rpartition(".")[0]
        spellings.update({stem.lower(): stem, stem.rpartition("/")[2].lower(): stem.rpartition("/")[2]})
    near = difflib.get_close_matches(name.lower().removesuffix(".yaml").removesuffix(".py"), spellings, n=3)
    hint = (
        f"did you mean {' or '.join(spellings[n] for n in near)}?"
        if near
        else "`mrcnn-ext zoo list` has the names"
    )
    raise ValueError(f"there is no file and no model {name!r} in the zoo; {hint}")


def zoo_name(config_file: str) -> str:
    """Name in its zoo of a file of `find_config`; any other file's is its path."""
    file = Path(config_file).resolve()
    for folder in (CONFIGS, _DETECTRON2_CONFIGS):
        if file.is_relative_to(folder.resolve()):
            return file.relative_to(folder.resolve()).as_posix()
    return config_file


def trained_weights(name: str) -> str:
    """URL of detectron2's trained weights for a config of its zoo, by its full name; "" if there are none."""
    try:
        return detectron2_zoo.get_checkpoint_url(name)
    except RuntimeError:
        return ""


def fetch_weights(url: str, file: str | os.PathLike) -> None:
    """Downloads weights, or takes them from detectron2's cache, into a file.

    Args:
        url: ``detectron2://...``, ``https://...`` or a path, as of ``MODEL.WEIGHTS``.
        file: to write.

    Raises:
        OSError: they cannot be fetched, or written.
    """
    try:
        cached = PathManager.get_local_path(url)
    except Exception as error:  # of whatever fetches it
        reason = str(error) or type(error).__name__
        raise OSError(
            f"{url} could not be fetched ({reason}). On a machine without a network put the file there by hand and "
            "give its path as MODEL.WEIGHTS"
        ) from error
    with open(cached, "rb") as source, replacing(os.fspath(file)) as target:
        shutil.copyfileobj(source, target)
