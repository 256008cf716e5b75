"""The paper's FCN mask head, for detectron2."""

from functools import partial

from detectron2.config import configurable
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from torch import nn

from ...layers.mask_networks import FCNMaskNetwork

__all__ = ["FCNMaskHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class FCNMaskHead(BaseMaskRCNNHead, nn.Sequential):
    """`FCNMaskNetwork` with detectron2's mask loss and inference: takes the place of
    MaskRCNNConvUpsampleHead, its arguments and its checkpoints.

    Args:
        input_shape (ShapeSpec): of the pooled features; only its channels matter.
        num_classes: masks per RoI; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution and, last, of the transposed convolution.
        conv_norm: normalisation of the convolutions: a name of detectron2's get_norm ("" for none, "BN",
            "GN", "SyncBN", ...) or a callable that makes the layer from a channel count.
        up_scale: further bilinear upsampling of the logits.
        loss_weight: factor of ``loss_mask``.
        vis_period: iterations between pictures of training masks in the event storage; 0 for none.
    """

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        num_classes: int,
        conv_dims,
        conv_norm="",
        up_scale: float = 1.0,
        loss_weight: float = 1.0,
        vis_period: int = 0,
    ):
        super().__init__(loss_weight=loss_weight, vis_period=vis_period)
        norm = partial(get_norm, conv_norm) if conv_norm else None
        network = FCNMaskNetwork(input_shape.channels, num_classes, list(conv_dims), norm, up_scale)
        # The layers become the head's own, not a submodule's: the parameter names stay those of stock
        # checkpoints.
        for name, layer in network.named_children():
            self.add_module(name, layer)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "conv_dims": [head.CONV_DIM]
            * (head.NUM_CONV + 1),  # the last one is the transposed convolution's
            "conv_norm": head.NORM,
            # Not among detectron2's own keys: a config made without add_mrcnn_ext_config works too.
            "up_scale": head.get("UP_SCALE", 1.0),
            "loss_weight": head.get("LOSS_WEIGHT", 1.0),
            "vis_period": cfg.VIS_PERIOD,
        }

    def layers(self, x):
        for layer in self:
            x = layer(x)
        return x
