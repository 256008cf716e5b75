"""The fully connected mask head that the paper lays beside its convolutional one, for detectron2."""

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import ROI_MASK_HEAD_REGISTRY

from ...config import with_defaults
from ...layers.mask_networks import MLPMaskNetwork
from ..shapes import pooled_size
from .base import SequentialMaskHead

__all__ = ["MLPMaskHead"]


@ROI_MASK_HEAD_REGISTRY.register()
class MLPMaskHead(SequentialMaskHead):
    """`MLPMaskNetwork` with detectron2's mask loss and inference.

    Args:
        input_shape: of the pooled features. Those of detectron2's own Res5ROIHeads are half as high and
            wide as they tell; FusedRes5ROIHeads tell the truth.
        num_classes: masks per RoI; 1 for class-agnostic masks.
        fc_dims: width of each hidden layer.
        output_size: side of the masks.
        kwargs: ``activation``, ``loss_weight`` and ``vis_period`` of `MaskHead`.

    Raises:
        ValueError: ``input_shape`` has no height and width.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        fc_dims=(1024, 1024),
        output_size: int = 28,
        **kwargs,
    ):
        super().__init__(num_classes=num_classes, **kwargs)
        size = (input_shape.channels, *pooled_size(type(self).__name__, input_shape))
        self.take_layers(MLPMaskNetwork(size, self.num_maps, list(fc_dims), output_size))

    @classmethod
    def from_config(cls, cfg, input_shape):
        head = with_defaults(cfg).MODEL.ROI_MASK_HEAD
        return {
            **super().from_config(cfg, input_shape),
            "fc_dims": [head.FC_DIM] * head.NUM_FC,
            "output_size": head.OUTPUT_SIZE,
        }
