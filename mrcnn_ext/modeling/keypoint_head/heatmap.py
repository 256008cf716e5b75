"""The paper's heatmap keypoint head, for detectron2."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY
from torch import nn

from ...config import with_defaults
from ...layers.keypoint_networks import HeatmapKeypointNetwork
from ..norms import norm_maker
from .base import KeypointHead

__all__ = ["HeatmapKeypointHead"]


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class HeatmapKeypointHead(KeypointHead, nn.Sequential):
    """`HeatmapKeypointNetwork` with detectron2's keypoint loss and inference: takes the place of
    KRCNNConvDeconvUpsampleHead, its arguments and its checkpoints.

    Args:
        input_shape: of the pooled features; only its channels matter.
        num_keypoints: heatmaps per RoI.
        conv_dims: output channels of each 3x3 convolution.
        conv_norm: normalisation of the convolutions: a name of detectron2's get_norm ("" for none, "BN",
            "GN", "SyncBN", ...) or a callable that makes the layer from a channel count.
        up_scale: bilinear upsampling of the heatmaps after the transposed convolution.
        wasp_rates: dilations of a waterfall of atrous convolutions; empty, the stock head's, for none.
        kwargs: those of `KeypointHead`.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_keypoints: int,
        conv_dims,
        conv_norm="",
        up_scale: float = 2.0,
        wasp_rates=(),
        **kwargs,
    ):
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        norm = norm_maker(conv_norm)
        network = HeatmapKeypointNetwork(
            input_shape.channels, num_keypoints, list(conv_dims), norm, up_scale, list(wasp_rates)
        )
        # The layers become the head's own, not a submodule's: the parameter names stay those of stock
        # checkpoints.
        for name, layer in network.named_children():
            self.add_module(name, layer)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": head.CONV_DIMS,
            "conv_norm": head.NORM,
            "up_scale": head.UP_SCALE,
            "wasp_rates": head.WASP_RATES,
        }

    def layers(self, x):
        for layer in self:
            x = layer(x)
        return x
