"""The image itself as the features of a detector."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from ...accel import KernelPolicy

__all__ = ["PixelBackbone", "build_pixel_backbone"]


class PixelBackbone(Backbone):
    """Gives the normalised image as its one feature map, ``pixels``, of stride 1: for ROI heads that look at crops of
    the image, as R-CNN's do.

    Args:
        channels: of the image.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        self._out_features = ["pixels"]
        self._out_feature_channels = {"pixels": channels}
        self._out_feature_strides = {"pixels": 1}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> {"pixels": (N, C, H, W)}."""
        return {"pixels": x}

    def fuse(self, policy: KernelPolicy) -> "PixelBackbone":
        """As a rule of `mrcnn_ext.accel` does: there is nothing to compute."""
        return self


@BACKBONE_REGISTRY.register()
def build_pixel_backbone(cfg, input_shape: ShapeSpec) -> PixelBackbone:
    """`PixelBackbone`; set MODEL.ROI_HEADS.IN_FEATURES ["pixels"] with it."""
    return PixelBackbone(input_shape.channels)
