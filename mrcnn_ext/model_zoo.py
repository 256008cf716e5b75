"""The configs that come with the package, found wherever it is installed.

>>> from mrcnn_ext import model_zoo
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.yaml")
>>> cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py")  # as a LazyConfig
"""

import torch
from detectron2 import model_zoo as detectron2_zoo  # for our LazyConfigs, which build on detectron2's
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

from .config import add_mrcnn_ext_config
from .config_files import get_config_file, list_configs

__all__ = ["detectron2_zoo", "get", "get_config", "get_config_file", "list_configs"]


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
