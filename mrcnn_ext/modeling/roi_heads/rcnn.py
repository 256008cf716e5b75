"""R-CNN as ROI heads: every proposal is warped out of the image and put through the network by itself."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, build_box_head
from detectron2.structures import Boxes
from torch import Tensor

from ...config import with_defaults
from ...layers.boxes import scaled_boxes
from ..poolers import FusedROIPooler
from .fused import FusedROIHeads, build_box_predictor

__all__ = ["CropPooler", "RCNNROIHeads"]


class CropPooler(FusedROIPooler):
    """Warps the box of every proposal, with some of its surroundings, to a square of pixels (R-CNN, section 2.1 and
    appendix A): RoIAlign over the image itself, which is antialiased, each pixel the mean of what it covers. Beyond
    the image there is 0, the mean colour of a normalised image.

    Args:
        output_size: side of the crops in pixels; R-CNN's is 227.
        context: pixels of surroundings on each side of the crop; R-CNN's is 16.
        scales: of the one feature map, the image: (1.0,).

    Raises:
        ValueError: ``context`` leaves nothing of the crop, or is below 0.
    """

    def __init__(self, output_size: int, context: float = 16, scales=(1.0,)):
        super().__init__(output_size, scales, 0, "ROIAlignV2")
        if not 0 <= 2 * context < output_size:
            raise ValueError(
                "the context of a crop (MODEL.ROI_BOX_HEAD.CONTEXT) must be at least 0 and less than half of its side "
                f"(POOLER_RESOLUTION, output_size), got {context} of {output_size}"
            )
        self.box_scale = output_size / (output_size - 2 * context)

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """As `FusedROIPooler`'s: (N, C, H, W) images and their boxes -> (M, C, output_size, output_size)."""
        return super().forward(x, [Boxes(scaled_boxes(boxes.tensor, self.box_scale)) for boxes in box_lists])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, box_scale={self.box_scale:.3f}"


@ROI_HEADS_REGISTRY.register()
class RCNNROIHeads(FusedROIHeads):
    """R-CNN's part behind the proposals (Girshick et al., CVPR 2014): with `PixelBackbone`, precomputed proposals and
    `CNNBoxHead` as the box head it makes detectron2's GeneralizedRCNN an R-CNN.

    Classes and boxes are learnt together with the network, by Fast R-CNN's losses or with hinge losses for the
    classes (MODEL.ROI_BOX_HEAD.CLASSIFIER), where R-CNN has three stages of training. A Python config makes
    `FusedROIHeads` with a `CropPooler`, which is the same.
    """

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        (name, *others), head = cfg.MODEL.ROI_HEADS.IN_FEATURES, with_defaults(cfg).MODEL.ROI_BOX_HEAD
        if others or input_shape[name].stride != 1:
            raise ValueError(
                'RCNNROIHeads take crops of the image: set MODEL.BACKBONE.NAME "build_pixel_backbone" and '
                f'MODEL.ROI_HEADS.IN_FEATURES ["pixels"], got {cfg.MODEL.ROI_HEADS.IN_FEATURES}'
            )
        side = head.POOLER_RESOLUTION
        box_head = build_box_head(cfg, ShapeSpec(input_shape[name].channels, side, side))
        return {
            "box_in_features": [name],
            "box_pooler": CropPooler(side, head.CONTEXT),
            "box_head": box_head,
            "box_predictor": build_box_predictor(cfg, box_head.output_shape),
        }
