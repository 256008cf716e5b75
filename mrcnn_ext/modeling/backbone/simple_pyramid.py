"""The feature pyramid of ViTDet, over any timm model with a map of stride 16."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import SimpleFeaturePyramid as _SimpleFeaturePyramid
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .timm import TimmBackbone

__all__ = ["SimpleFeaturePyramid", "build_timm_simple_pyramid_backbone"]


class SimpleFeaturePyramid(_SimpleFeaturePyramid):
    """detectron2's: levels of several strides from one map, by transposed convolutions and pooling (Li et al.,
    *Exploring Plain Vision Transformer Backbones for Object Detection*, ECCV 2022, section 3).

    Images are filled up to multiples of the coarsest level's stride, as its own mean to be and are not: it gives the
    number under a misspelt name. So they need not be squares of one size (``square_pad``), and models can be exported.
    Arguments are those of detectron2's.
    """

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"size_divisibility": self._size_divisibility, "square_size": self._square_pad}


@BACKBONE_REGISTRY.register()
def build_timm_simple_pyramid_backbone(cfg, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """The timm model of MODEL.TIMM, a Vision Transformer say, under `SimpleFeaturePyramid` with P2 to P6.

    The one feature of MODEL.FPN.IN_FEATURES is read, ["res4"] of stride 16; MODEL.FPN.OUT_CHANNELS and NORM, "LN" in
    ViTDet, are the pyramid's.

    Raises:
        ValueError: MODEL.FPN.IN_FEATURES is not one feature, of stride 16.
    """
    names = cfg.MODEL.FPN.IN_FEATURES
    net = TimmBackbone(cfg, input_shape)
    shapes = net.output_shape()
    stride = shapes[names[0]].stride if len(names) == 1 and names[0] in shapes else 0
    if stride != 16:
        raise ValueError(
            'a simple pyramid is made of one map of stride 16: set MODEL.TIMM.OUT_FEATURES ["res4"] and '
            f'MODEL.FPN.IN_FEATURES ["res4"], got {list(cfg.MODEL.TIMM.OUT_FEATURES)} and {list(names)}'
        )
    return SimpleFeaturePyramid(
        net=net,
        in_feature=names[0],
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
    )
