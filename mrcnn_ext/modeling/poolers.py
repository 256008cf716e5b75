"""RoI pooling over a feature pyramid, for detectron2."""

import torch
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import roi_align_pyramid
from ..ops.roi_options import check_pyramid

__all__ = ["FusedROIPooler"]

# name -> (mode of layers.roi_align, aligned). The first three are detectron2's, and so are their results.
_POOLER_TYPES = {
    "ROIAlign": ("avg", False),
    "ROIAlignV2": ("avg", True),
    "ROIPool": ("pool", False),
    "ROIAlignMax": ("max", True),
    "ROIWarpAvg": ("warp_avg", False),
    "ROIWarpMax": ("warp_max", False),
    "PrROIPool": ("exact", True),
}
# Left to detectron2's own pooler: its boxes have an angle.
_STOCK_POOLER_TYPES = ("ROIAlignRotated",)


def _rois(box_lists: list[Boxes]) -> Tensor:
    """Rows [image, x0, y0, x1, y1] of all boxes. detectron2's own function, which counts may be traced through, copies
    the counts to the device and waits for it."""
    if torch.jit.is_tracing():
        return convert_boxes_to_pooler_format(box_lists)
    rows = [F.pad(boxes.tensor, (1, 0), value=float(image)) for image, boxes in enumerate(box_lists)]
    return torch.cat(rows)


class FusedROIPooler(nn.Module):
    """detectron2's ROIPooler in one call for the whole pyramid: the same arguments, the same results.

    Unlike the stock pooler it keeps the RoIs in float32 whatever the dtype of the features (bfloat16 would
    move a corner at 301.3 to 302) and its output need not be square.

    Args:
        output_size: bins of the output, P or (P_h, P_w).
        scales: per level, feature cells per input pixel (1 / stride), finest level first. Several levels must
            be consecutive powers of two.
        sampling_ratio: samples per bin and axis; 0 for as many as the bin has cells.
        pooler_type: "ROIAlign", "ROIAlignV2" (half-pixel centres), "ROIPool" and "ROIAlignRotated" as in
            detectron2; "ROIAlignMax" (the samples of ROIAlignV2, maximum instead of mean); "ROIWarpAvg" and
            "ROIWarpMax" (RoI rounded to feature cells, then bilinear samples: Mask R-CNN, table 2c);
            "PrROIPool" (the bilinear interpolant integrated over the bin, half-pixel centres).
        canonical_box_size, canonical_level: a box with this side in pixels goes to this level (FPN, eq. 1).

    Raises:
        ValueError: for an unknown ``pooler_type``, scales that are no pyramid, or an output size that is not
            one or two positive integers.
    """

    def __init__(
        self,
        output_size,
        scales,
        sampling_ratio: int,
        pooler_type: str,
        canonical_box_size: int = 224,
        canonical_level: int = 4,
    ):
        super().__init__()
        size = [output_size] * 2 if isinstance(output_size, int) else list(output_size)
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(f"output_size must be one or two positive integers, got {output_size!r}")
        self.output_size = (size[0], size[1])
        self.scales = [float(scale) for scale in scales]
        check_pyramid(self.scales, "scales")
        self.sampling_ratio = sampling_ratio
        self.pooler_type = pooler_type
        if canonical_box_size <= 0:
            raise ValueError(f"canonical_box_size must be positive, got {canonical_box_size}")
        self.canonical_box_size = float(canonical_box_size)
        self.canonical_level = canonical_level
        self.stock_pooler = None
        self.mode, self.aligned = "", False
        if pooler_type in _STOCK_POOLER_TYPES:
            self.stock_pooler = ROIPooler(
                self.output_size,
                self.scales,
                sampling_ratio,
                pooler_type,
                canonical_box_size,
                canonical_level,
            )
        elif pooler_type in _POOLER_TYPES:
            self.mode, self.aligned = _POOLER_TYPES[pooler_type]
        else:
            known = ", ".join([*_POOLER_TYPES, *_STOCK_POOLER_TYPES])
            raise ValueError(f"unknown pooler type {pooler_type!r}; there are {known}")

    # As in detectron2, RotatedBoxes are left out of the annotation: TorchScript reads it.
    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pools every box of every image.

        Args:
            x: one (N, C, H_l, W_l) feature map per level.
            box_lists: N Boxes (RotatedBoxes for "ROIAlignRotated") in pixels of the input image.

        Returns:
            (M, C, P_h, P_w), in the dtype of the features, M the boxes of all images in order.
        """
        if self.stock_pooler is not None:
            return self.stock_pooler(x, box_lists)
        torch._assert(len(x) == len(self.scales), "the pooler needs one feature map for each of its scales")
        torch._assert(
            len(box_lists) == x[0].shape[0], "the pooler needs one Boxes for each image of the features"
        )
        if len(box_lists) == 0:
            return x[0].new_zeros([0, x[0].shape[1], self.output_size[0], self.output_size[1]])
        if torch.jit.is_scripting():
            rois = convert_boxes_to_pooler_format(box_lists)
        else:
            rois = _rois(box_lists)
        return roi_align_pyramid(
            x,
            rois,
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            self.mode,
            self.canonical_box_size,
            self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, scales={self.scales}, sampling_ratio={self.sampling_ratio}, "
            f"pooler_type={self.pooler_type!r}"
        )
