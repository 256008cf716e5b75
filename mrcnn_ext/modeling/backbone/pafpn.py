"""The feature pyramid of PANet: FPN's, and a path from its finest level back up to the coarsest."""

import math

import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from ...layers.conv import msra_fill
from .timm import TimmBackbone

__all__ = ["PAFPN", "build_resnet_pafpn_backbone", "build_timm_pafpn_backbone"]


class PAFPN(FPN):
    """FPN with bottom-up path augmentation (Liu et al., *Path Aggregation Network for Instance Segmentation*, CVPR
    2018, section 3.1).

    Of FPN's levels P_l the finest is N_l = P_l; each coarser one is made of the one below it,
    ``N_{l+1} = conv(conv_stride2(N_l) + P_{l+1})``, by 3x3 convolutions with a ReLU each. The results are called as
    FPN's, "p2" to "p5", so that heads and configs of FPN work as they are, and FPN's own parameters keep their names
    (``fpn_lateral2``, ``fpn_output2``): its checkpoints load but for ``pafpn_down3``, ``pafpn_output3`` and so on.

    Args:
        bottom_up: a backbone whose features have strides each twice the one before.
        in_features: names of its features, finest first.
        out_channels: of each level.
        norm: normalisation of the convolutions, a name of detectron2's get_norm; "" for none.
        top_block: makes further levels from one of N; detectron2's ``LastLevelMaxPool`` P6.
        fuse_type: how FPN merges a level with the one above: "sum" or "avg".
        square_pad: pads images to squares of this side; 0 does not.

    Raises:
        ValueError: ``top_block`` reads a feature that is no level of the pyramid.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features,
        out_channels: int,
        norm: str = "",
        top_block: nn.Module | None = None,
        fuse_type: str = "sum",
        square_pad: int = 0,
    ):
        super().__init__(bottom_up, in_features, out_channels, norm, None, fuse_type, square_pad)
        levels = [int(math.log2(stride)) for stride in self._out_feature_strides.values()]
        self.downs, self.outputs = [], []  # finest first
        for level in levels[1:]:
            for convs, name, stride in ((self.downs, "down", 2), (self.outputs, "output", 1)):
                conv = Conv2d(
                    out_channels,
                    out_channels,
                    kernel_size=3,
                    stride=stride,
                    padding=1,
                    bias=norm == "",
                    norm=get_norm(norm, out_channels),
                    activation=F.relu,
                )
                msra_fill(conv)
                self.add_module(f"pafpn_{name}{level}", conv)
                convs.append(conv)
        if top_block is not None and top_block.in_feature not in self._out_features:
            raise ValueError(
                f"top_block reads {top_block.in_feature!r}, and the levels of the pyramid are "
                f"{', '.join(self._out_features)}"
            )
        # Not FPN's own top_block, which would read its P instead of N.
        self.last_levels = top_block
        count = 0 if top_block is None else top_block.num_levels
        self._strides_above = {f"p{levels[-1] + k}": 2 ** (levels[-1] + k) for k in range(1, count + 1)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) images -> name: (N, out_channels, H / stride, W / stride) for every level."""
        return self.bottom_up_path(super().forward(x))

    def bottom_up_path(self, levels: dict[str, Tensor]) -> dict[str, Tensor]:
        """FPN's levels, finest first -> those of the augmented path, and of the top block."""
        (first, x), *coarser = levels.items()
        results = {first: x}
        for (name, level), down, output in zip(coarser, self.downs, self.outputs, strict=True):
            x = output(level + down(x))
            results[name] = x
        if self.last_levels is not None:
            above = self.last_levels(results[self.last_levels.in_feature])
            results.update(zip(self._strides_above, above, strict=True))
        return results

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each level by its name."""
        shapes = super().output_shape()
        channels = shapes[self._out_features[-1]].channels
        above = {n: ShapeSpec(channels=channels, stride=s) for n, s in self._strides_above.items()}
        return {**shapes, **above}


def _pafpn(cfg, bottom_up: Backbone) -> PAFPN:
    fpn = cfg.MODEL.FPN
    return PAFPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, LastLevelMaxPool(), fpn.FUSE_TYPE)


@BACKBONE_REGISTRY.register()
def build_resnet_pafpn_backbone(cfg, input_shape: ShapeSpec) -> PAFPN:
    """detectron2's ResNet (MODEL.RESNETS) under `PAFPN` (MODEL.FPN), with P6."""
    return _pafpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_timm_pafpn_backbone(cfg, input_shape: ShapeSpec) -> PAFPN:
    """The timm model of MODEL.TIMM under `PAFPN` (MODEL.FPN), with P6."""
    return _pafpn(cfg, TimmBackbone(cfg, input_shape))
