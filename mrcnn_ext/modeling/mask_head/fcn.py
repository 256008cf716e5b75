"""The paper's FCN mask head, for detectron2."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY

from ...config import with_defaults
from ...layers.mask_networks import FCNMaskNetwork
from ..norms import norm_maker
from .base import SequentialMaskHead

__all__ = ["FCNMaskHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class FCNMaskHead(SequentialMaskHead):
    """`FCNMaskNetwork` with detectron2's mask loss and inference: takes the place of
    MaskRCNNConvUpsampleHead, its arguments and its checkpoints.

    Args:
        input_shape: of the pooled features; only its channels matter.
        num_classes: masks per RoI; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution and, last, of the transposed convolutions.
        conv_norm: normalisation of the convolutions: a name of detectron2's get_norm ("" for none, "BN",
            "GN", "SyncBN", ...) or a callable that makes the layer from a channel count.
        up_scale: further bilinear upsampling of the logits.
        num_deconv: transposed convolutions; each doubles the side of the masks.
        kwargs: ``activation``, ``loss_weight`` and ``vis_period`` of `MaskHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims,
        conv_norm="",
        up_scale: float = 1.0,
        num_deconv: int = 1,
        **kwargs,
    ):
        super().__init__(num_classes=num_classes, **kwargs)
        norm = norm_maker(conv_norm)
        self.take_layers(
            FCNMaskNetwork(input_shape.channels, self.num_maps, list(conv_dims), norm, up_scale, num_deconv)
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            # The last one is the transposed convolutions'.
            "conv_dims": [head.CONV_DIM] * (head.NUM_CONV + 1),
            "conv_norm": head.NORM,
            "up_scale": head.UP_SCALE,
            "num_deconv": head.NUM_DECONV,
        }
