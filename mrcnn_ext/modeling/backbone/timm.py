"""Any convolutional or hierarchical timm model as a detectron2 backbone."""

import warnings

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ...layers.timm_features import TimmFeatures, input_statistics

__all__ = [
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
    "check_timm_input",
    "follow_timm",
    "timm_input",
]

# Of detectron2's default config, for the weights of its ResNets.
_STOCK_INPUT = {
    "input_format": "BGR",
    "pixel_mean": [103.530, 116.280, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
}
_TOLERANCE = 1.0  # of means and deviations, of 255
_STOCK_WEIGHTS = "ImageNetPretrained/"  # in the address of ImageNet weights of detectron2's backbones


class TimmBackbone(TimmFeatures, Backbone):
    """`TimmFeatures` as a detectron2 backbone: its arguments.

    The features have the names of detectron2's ResNet, so configs written for it work as they are. The model's pixel
    mean, deviation and format (RGB) must be those of the timm weights: `timm_input`.

    Args:
        weights: a path, or a URL that detectron2's PathManager knows.
        model_args: further arguments of the timm model.
        kwargs: the other arguments of :class:`mrcnn_ext.layers.TimmFeatures`; freeze_at is
            MODEL.BACKBONE.FREEZE_AT.
    """

    @configurable
    def __init__(self, *, weights: str = "", model_args=None, **kwargs):
        if isinstance(model_args, DictConfig):  # from a LazyConfig, with lists that timm does not know
            model_args = OmegaConf.to_container(model_args)
        weights = PathManager.get_local_path(weights) if weights else ""
        super().__init__(weights=weights, model_args=model_args, **kwargs)
        self._out_features = self.out_features
        self._out_feature_channels = self.channels
        self._out_feature_strides = self.strides

    @classmethod
    def from_config(cls, cfg, input_shape):
        if "TIMM" not in cfg.MODEL:
            raise ValueError(
                "the config has no MODEL.TIMM: call mrcnn_ext.add_mrcnn_ext_config(cfg) before merging a file"
            )
        timm_cfg = cfg.MODEL.TIMM
        for problem in _unfit(cfg):  # stock classes use the config as it is
            warnings.warn(f"{problem}, or use mrcnn_ext.engine.Trainer and Predictor, which do", stacklevel=2)
        return {
            "model_name": timm_cfg.NAME,
            "out_features": timm_cfg.OUT_FEATURES,
            "pretrained": timm_cfg.PRETRAINED,
            "weights": timm_cfg.WEIGHTS,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "norm": timm_cfg.NORM,
            "in_channels": input_shape.channels,
            "model_args": dict(timm_cfg.ARGS),
        }

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[self._out_features[-1]]


def timm_input(model_name: str) -> dict:
    """How a timm model wants its images: arguments of a detector in a LazyConfig.

    Args:
        model_name: of ``timm.list_models()``.

    Returns:
        dict: ``input_format`` "RGB"; ``pixel_mean`` and ``pixel_std``, (3,) in 0..255.

    Raises:
        ValueError: there is no such model.
    """
    mean, std = ([round(255 * value, 3) for value in values] for values in input_statistics(model_name))
    return {"input_format": "RGB", "pixel_mean": mean, "pixel_std": std}


def follow_timm(cfg) -> list[str]:
    """With a timm backbone, sets its input and weights where they are those of detectron2's ResNets
    (``MODEL.TIMM.INPUT``).

    Args:
        cfg: changed.

    Returns:
        what was set, a line each.

    Raises:
        ValueError: training would start from timm's weights with another input than theirs that was set on purpose.
    """
    model, done = cfg.MODEL, []
    if not model.BACKBONE.NAME.startswith("build_timm_") or model.TIMM.INPUT != "auto":
        return done
    if _has_stock_input(cfg):
        wanted = timm_input(model.TIMM.NAME)
        cfg.INPUT.FORMAT = wanted["input_format"]
        model.PIXEL_MEAN, model.PIXEL_STD = wanted["pixel_mean"], wanted["pixel_std"]
        done.append(
            f"INPUT.FORMAT is RGB, MODEL.PIXEL_MEAN {model.PIXEL_MEAN} and PIXEL_STD {model.PIXEL_STD}, as "
            f'{model.TIMM.NAME} of timm was trained; MODEL.TIMM.INPUT "config" leaves them alone'
        )
    if _STOCK_WEIGHTS in model.WEIGHTS:
        instead = model.TIMM.WEIGHTS or "timm's (MODEL.TIMM.PRETRAINED True)"
        done.append(
            f"MODEL.WEIGHTS {model.WEIGHTS} are not of {model.TIMM.NAME}: it starts from {instead}. To start from "
            'random weights set MODEL.WEIGHTS ""'
        )
        model.WEIGHTS, model.TIMM.PRETRAINED = "", not model.TIMM.WEIGHTS
    if (model.TIMM.PRETRAINED or model.TIMM.WEIGHTS) and not model.WEIGHTS:
        given = {"INPUT.FORMAT": cfg.INPUT.FORMAT}
        given |= {"MODEL.PIXEL_MEAN": model.PIXEL_MEAN, "MODEL.PIXEL_STD": model.PIXEL_STD}
        if wrong := _wrong_input(model.TIMM.NAME, given):
            raise ValueError(f'{wrong}; to have it all the same, set MODEL.TIMM.INPUT "config"')
    model.TIMM.INPUT = "config"
    return done


def check_timm_input(cfg: DictConfig) -> None:
    """Checks that a timm backbone of a LazyConfig which starts from timm's weights gets the images of their training.

    ``train.timm_input`` "config" skips it, as ``MODEL.TIMM.INPUT`` does.

    Args:
        cfg: with ``model``, ``dataloader`` and ``train``.

    Raises:
        ValueError: it does not; the message says what is to be set.
    """
    part = cfg.model.get("backbone")
    while isinstance(part, DictConfig) and part.get("_target_") is not TimmBackbone:
        part = part.get("bottom_up") or part.get("net")
    train = cfg.get("train", {})
    starts_from_timm = part is not None and (part.get("pretrained") or part.get("weights"))
    if not starts_from_timm or train.get("init_checkpoint") or train.get("timm_input") == "config":
        return
    order = OmegaConf.select(cfg, "dataloader.train.mapper.image_format")
    given = {"model.input_format": cfg.model.get("input_format")}
    given |= {} if order is None else {"dataloader.train.mapper.image_format": order}
    given |= {f"model.{key}": list(cfg.model[key]) for key in ("pixel_mean", "pixel_std") if key in cfg.model}
    if wrong := _wrong_input(part.model_name, given):
        raise ValueError(
            f"{wrong}; `model.update(mrcnn_ext.modeling.timm_input({part.model_name!r}))` sets the model's; to have it "
            'all the same, set train.timm_input="config"'
        )


def _wrong_input(model_name: str, given: dict) -> str:
    """What is wrong with the channel orders, means and deviations given for a timm model, by their keys; "" if nothing
    is."""
    wanted, wrong = timm_input(model_name), []
    for key, value in given.items():
        if "format" in key.lower():
            # Others than these two are of images that timm's weights are changed for.
            if value == "BGR":
                wrong.append(f'{key} "RGB", not {value!r}')
            continue
        right = wanted["pixel_mean" if key.lower().endswith("mean") else "pixel_std"]
        if len(value) == 3 and max(abs(a - b) for a, b in zip(value, right, strict=True)) > _TOLERANCE:
            wrong.append(f"{key} {right}, not {list(value)}")
    return f"the weights of {model_name} of timm need {', '.join(wrong)}" if wrong else ""


def _has_stock_input(cfg):
    model = cfg.MODEL
    own = {
        "input_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(model.PIXEL_MEAN),
        "pixel_std": list(model.PIXEL_STD),
    }
    return own == _STOCK_INPUT


def _unfit(cfg):
    """What `follow_timm` would set."""
    timm, problems = cfg.MODEL.TIMM, []
    if timm.get("INPUT", "config") != "auto":
        return problems
    if _STOCK_WEIGHTS in cfg.MODEL.WEIGHTS:
        start = "its own" if timm.PRETRAINED or timm.WEIGHTS else "random"
        problems.append(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} are not of {timm.NAME}, which starts from {start} weights: set "
            'MODEL.WEIGHTS "" and MODEL.TIMM.PRETRAINED True'
        )
    if (timm.PRETRAINED or timm.WEIGHTS) and _has_stock_input(cfg):
        wanted = timm_input(timm.NAME)
        problems.append(
            f"{timm.NAME} of timm was trained with other images than detectron2's defaults: set INPUT.FORMAT RGB, "
            f"MODEL.PIXEL_MEAN {wanted['pixel_mean']} and MODEL.PIXEL_STD {wanted['pixel_std']}"
        )
    return problems


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model of MODEL.TIMM alone, as for a C4 model (OUT_FEATURES ["res4"])."""
    return TimmBackbone(cfg, input_shape)


def _fpn(cfg, bottom_up: TimmBackbone, top_block: nn.Module) -> FPN:
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The timm model of MODEL.TIMM under detectron2's FPN (MODEL.FPN), with P6 as Mask R-CNN has it."""
    return _fpn(cfg, TimmBackbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_timm_retinanet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """The timm model of MODEL.TIMM under detectron2's FPN (MODEL.FPN), with P6 and P7 as RetinaNet has
    them.
    """
    bottom_up = TimmBackbone(cfg, input_shape)
    coarsest = cfg.MODEL.FPN.IN_FEATURES[-1]
    channels = bottom_up.output_shape()[coarsest].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, in_feature=coarsest))
