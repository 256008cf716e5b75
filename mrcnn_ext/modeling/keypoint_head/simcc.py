"""A keypoint head that classifies coordinates, for detectron2."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.keypoint_head import ROI_KEYPOINT_HEAD_REGISTRY

from ...config import with_defaults
from ...layers.keypoint_networks import SimCCKeypointNetwork
from ...layers.keypoint_targets import axis_loss
from ..norms import norm_maker
from ..shapes import pooled_size
from .base import KeypointHead

__all__ = ["SimCCKeypointHead"]


@ROI_KEYPOINT_HEAD_REGISTRY.register()
class SimCCKeypointHead(KeypointHead):
    """`SimCCKeypointNetwork` as a keypoint head: one distribution per axis and keypoint.

    The loss is the cross-entropy of both axes. At inference the sum of the axes' logits is a heatmap, whose
    softmax is the product of the two distributions: it is decoded as those of the other heads are.

    Args:
        input_shape: of the pooled features: channels, height and width.
        num_keypoints: K.
        conv_dims: output channels of each 3x3 convolution.
        conv_norm: normalisation of the convolutions, as `HeatmapKeypointHead`'s.
        split_ratio: bins per cell of the pooled features; ``target_sigma`` is in bins.
        kwargs: those of `KeypointHead`.

    Raises:
        ValueError: ``input_shape`` has no height and width.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_keypoints: int,
        conv_dims,
        conv_norm="",
        split_ratio: int = 4,
        **kwargs,
    ):
        super().__init__(num_keypoints=num_keypoints, **kwargs)
        norm = norm_maker(conv_norm)
        size = pooled_size(type(self).__name__, input_shape)
        self.network = SimCCKeypointNetwork(
            input_shape.channels, num_keypoints, size, list(conv_dims), norm, split_ratio
        )

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_KEYPOINT_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "input_shape": input_shape,
            "conv_dims": head.CONV_DIMS,
            "conv_norm": head.NORM,
            "split_ratio": head.SPLIT_RATIO,
        }

    def layers(self, x):
        x_logits, y_logits = self.network(x)
        return y_logits[..., :, None] + x_logits[..., None, :]

    def loss(self, x, instances):
        x_logits, y_logits = self.network(x)
        places, valid = self.targets(instances, (y_logits.shape[2], x_logits.shape[2]))
        total = sum(
            axis_loss(logits[valid], places[valid][:, axis], self.target_sigma, self.label_smoothing)
            for axis, logits in enumerate((x_logits, y_logits))
        )
        return self.normalized(total, valid, len(instances))
