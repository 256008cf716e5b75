"""Evaluation of a checkpoint that was trained with a LazyConfig, from the checkpoint alone."""

from collections.abc import Sequence

import yaml
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from ..config_files import get_config_file
from .description import check_targets, read_description
from .errors import UserError

__all__ = ["described_lazy_config"]

_WEIGHTS = "train.init_checkpoint"
# What is not the model's: the loaders and the sections of a training, which are not used.
_FRAME = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN.py"


def described_lazy_config(overrides: Sequence[str], trust: bool = False) -> DictConfig:
    """
    Args:
        overrides: of the command line; ``train.init_checkpoint=FILE`` is among them.
        trust: as of `mrcnn_ext.engine.weight_files.read_weights`.

    Returns:
        A LazyConfig with the checkpoint's model, mapper, test data and evaluator, and with its device.

    Raises:
        UserError: there is no checkpoint among the overrides, or it does not say how it is evaluated.
    """
    path = next((text.partition("=")[2] for text in overrides if text.startswith(f"{_WEIGHTS}=")), "")
    path = path.strip("'\"")
    if not path:
        raise UserError(f"give --config-file, or {_WEIGHTS}=FILE with a checkpoint that holds its config")
    about = read_description(path, trust)
    if about["kind"] != "lazy":
        raise UserError(
            f"{path} was trained with a yaml config: give its own program, tools/train_net.py, MODEL.WEIGHTS {path}"
        )
    parts = yaml.safe_load(about["config"])
    if not parts.get("evaluator") or not parts.get("datasets"):
        raise UserError(f"{path} does not hold its test data and evaluator: give --config-file")
    if not trust:
        check_targets(parts, path)
    cfg = LazyConfig.load(get_config_file(_FRAME))
    names = parts["datasets"]
    cfg.model = _as_config(parts["model"])
    if parts.get("mapper"):
        cfg.dataloader.test.mapper = _as_config(parts["mapper"])
    cfg.dataloader.test.dataset.names = names[0] if len(names) == 1 else names
    cfg.dataloader.evaluator = _as_config({**parts["evaluator"], "dataset_name": "${..test.dataset.names}"})
    cfg.train.device = parts["device"]
    return cfg


def _as_config(part):
    return OmegaConf.create(part, flags={"allow_objects": True})
