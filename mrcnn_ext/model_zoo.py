"""The configs that come with the package, found wherever it is installed.

>>> from mrcnn_ext import model_zoo
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml")
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py")  # as a LazyConfig
"""

import difflib
from pathlib import Path

import torch
from detectron2 import model_zoo as detectron2_zoo  # for our LazyConfigs, which build on detectron2's
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

from .config import add_mrcnn_ext_config

__all__ = ["detectron2_zoo", "get", "get_config", "get_config_file", "list_configs"]


def _find_configs(package: Path) -> Path:
    """An installed package has the configs inside it; in a source tree they lie beside it."""
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


_ROOT = _find_configs(Path(__file__).resolve().parent)


def list_configs() -> list[str]:
    """Names of all configs of models, relative to ``configs/``."""
    files = [*_ROOT.rglob("*.yaml"), *_ROOT.rglob("*.py")]
    names = sorted(path.relative_to(_ROOT).as_posix() for path in files)
    return [name for name in names if not name.startswith(("Base-", "common/"))]


def get_config_file(config_path: str) -> str:
    """Path of a config file on disk.

    Args:
        config_path: its name relative to ``configs/``, ending with .yaml or .py.

    Raises:
        ValueError: if there is none of that name; the message lists those like it.
    """
    file = _ROOT / config_path
    if not file.is_file():
        names = list_configs()
        near = difflib.get_close_matches(config_path, names, n=3, cutoff=0.5) or names
        raise ValueError(f"there is no config {config_path!r}; there is {', '.join(near)}")
    return str(file)


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
