"""RoI pooling over a feature pyramid, for torchvision's detectors."""

import math

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from ...layers import roi_align_pyramid
from ...ops.roi_options import check_pyramid

__all__ = ["FusedMultiScaleRoIAlign"]

# torchvision adds 1e-6 to the level of a box before it rounds it down (FPN, eq. 1). With the canonical size
# smaller by this factor boxes change level at the very same float32 sizes.
_LEVEL_EPSILON = 2**-9e-7


class FusedMultiScaleRoIAlign(MultiScaleRoIAlign):
    """torchvision's MultiScaleRoIAlign in one call for the whole pyramid: its arguments, its results.

    Args:
        featmap_names: names of the feature maps to pool from: one, or consecutive levels of a pyramid.
        output_size: bins of the output, P or (P_h, P_w).
        sampling_ratio: samples per bin and axis; <= 0 for as many as the bin has cells.
        canonical_scale, canonical_level: a box with this side in pixels goes to this level (FPN, eq. 1).
        aligned: True puts the centres of the feature cells at half integers, which torchvision's does not.
    """

    def __init__(
        self,
        featmap_names: list[str],
        output_size: int | tuple[int, int] | list[int],
        sampling_ratio: int,
        *,
        canonical_scale: int = 224,
        canonical_level: int = 4,
        aligned: bool = False,
    ):
        super().__init__(
            featmap_names,
            output_size,
            sampling_ratio,
            canonical_scale=canonical_scale,
            canonical_level=canonical_level,
        )
        self.aligned = aligned

    def forward(
        self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> Tensor:
        """Pools every box of every image.

        Args:
            x: name: (N, C, H_l, W_l) feature map.
            boxes: per image (L_i, 4) corners x0, y0, x1, y1, in pixels of the network's input.
            image_shapes: per image its height and width in the network's input.

        Returns:
            (L_1 + ... + L_N, C, P_h, P_w), in the dtype of the features.

        Raises:
            ValueError: none of the maps named by ``featmap_names`` is there (others are done without, as by
                torchvision), or they are no consecutive levels of a pyramid.
        """
        features = [feature for name, feature in x.items() if name in self.featmap_names]
        if not features:
            raise ValueError(f"none of featmap_names {self.featmap_names} is among the features {list(x)}")
        if self.scales is None:
            self.scales = _scales(features, image_shapes)
            check_pyramid(self._levels(), f"the scales of featmap_names {self.featmap_names}")
        scales = self._levels()
        return roi_align_pyramid(
            features[: len(scales)],
            _as_rows(boxes),
            self.output_size,
            scales,
            self.sampling_ratio,
            self.aligned,
            canonical_box_size=self.canonical_scale * _LEVEL_EPSILON,
            canonical_level=self.canonical_level,
        )

    def _levels(self) -> list[float]:
        """The scales that torchvision pools from: it counts levels from the first map's, so that of maps which are all
        of one scale (those of MobileNetV3's pyramid) it takes the first."""
        return self.scales[:1] if self.scales[0] == self.scales[-1] else self.scales


def _as_rows(boxes: list[Tensor]) -> Tensor:
    """(R, 5) rows [batch index, x0, y0, x1, y1]."""
    return torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)])


def _scales(features: list[Tensor], image_shapes: list[tuple[int, int]]) -> list[float]:
    """Cells per pixel of each map: the power of two that is nearest to the ratio of heights."""
    height = max(shape[0] for shape in image_shapes)
    return [2.0 ** round(math.log2(feature.shape[-2] / height)) for feature in features]
