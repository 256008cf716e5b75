"""Any convolutional or hierarchical timm model as a detectron2 backbone."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.file_io import PathManager
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ...layers.timm_features import TimmFeatures

__all__ = [
    "TimmBackbone",
    "build_timm_backbone",
    "build_timm_fpn_backbone",
    "build_timm_retinanet_fpn_backbone",
]


class TimmBackbone(TimmFeatures, Backbone):
    """`TimmFeatures` as a detectron2 backbone: its arguments.

    The features have the names of detectron2's ResNet, so configs written for it work as they are. Set the
    model's pixel mean, deviation and format (RGB) to those of the timm weights.

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
