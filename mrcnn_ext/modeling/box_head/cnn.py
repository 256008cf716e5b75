"""R-CNN's box head: a whole network on the crop of every RoI."""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.roi_heads.box_head import ROI_BOX_HEAD_REGISTRY, FastRCNNConvFCHead
from torch import Tensor, nn

from ...accel import KernelPolicy, fuse_children
from ...config import with_defaults

__all__ = ["CNNBoxHead"]


@ROI_BOX_HEAD_REGISTRY.register()
class CNNBoxHead(nn.Module):
    """A backbone and a head of convolutions and fully connected layers on every crop by itself (Girshick et al., *Rich
    feature hierarchies for accurate object detection and semantic segmentation*, CVPR 2014, section 2). Fast R-CNN
    computes the same on the features of one pass over the image.

    (R, C, H, W) crops of the image -> (R, D).

    Args:
        backbone: takes the crops.
        head: takes the backbone's map.
        feature: name of that map.
        crops_at_once: at inference, so that memory does not grow with the number of proposals. In training the
            sampled ones are together, for batch normalisation.

    Raises:
        ValueError: the backbone has no such map, or ``crops_at_once`` is below 1.
    """

    @configurable
    def __init__(self, *, backbone: Backbone, head: nn.Module, feature: str, crops_at_once: int = 64):
        super().__init__()
        if feature not in backbone.output_shape():
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.CNN.FEATURE (feature) is {feature!r}, and the backbone gives "
                f"{', '.join(backbone.output_shape())}"
            )
        if crops_at_once < 1:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.CNN.CROPS_AT_ONCE (crops_at_once) must be at least 1, got "
                f"{crops_at_once}"
            )
        self.backbone = backbone
        self.head = head
        self.feature = feature
        self.crops_at_once = crops_at_once

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        cnn = with_defaults(cfg).MODEL.ROI_BOX_HEAD.CNN
        backbone = BACKBONE_REGISTRY.get(cnn.NAME)(cfg, ShapeSpec(channels=input_shape.channels))
        shape = backbone.output_shape().get(cnn.FEATURE)
        head = None
        if shape is not None:
            sides = [-(-side // shape.stride) for side in (input_shape.height, input_shape.width)]
            head = FastRCNNConvFCHead(cfg, ShapeSpec(shape.channels, *sides))
        return {
            "backbone": backbone,
            "head": head,
            "feature": cnn.FEATURE,
            "crops_at_once": cnn.CROPS_AT_ONCE,
        }

    def forward(self, x: Tensor) -> Tensor:
        if self.training or len(x) <= self.crops_at_once:
            return self.head(self.backbone(x)[self.feature])
        return torch.cat(
            [self.head(self.backbone(part)[self.feature]) for part in x.split(self.crops_at_once)]
        )

    def fuse(self, policy: KernelPolicy) -> "CNNBoxHead | None":
        """As a rule of `mrcnn_ext.accel` does: backbone and head, each by itself."""
        return self if fuse_children(self, policy) else None

    @property
    def output_shape(self) -> ShapeSpec:
        return self.head.output_shape
