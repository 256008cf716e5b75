"""RoI pooling over a feature pyramid, for torchvision's detectors."""

from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import _convert_to_roi_format, _filter_input, _setup_scales

from ...layers import roi_align_pyramid

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
        features = _filter_input(x, self.featmap_names)
        if not features:
            raise ValueError(f"none of featmap_names {self.featmap_names} is among the features {list(x)}")
        if self.scales is None:
            scales, self.map_levels = _setup_scales(
                features, image_shapes, self.canonical_scale, self.canonical_level
            )
            if any(coarse != fine / 2 for fine, coarse in zip(scales, scales[1:], strict=False)):
                raise ValueError(
                    f"featmap_names {self.featmap_names} have scales {scales}: "
                    "each level of a pyramid must be half as large as the one before"
                )
            self.scales = scales
        return roi_align_pyramid(
            features,
            _convert_to_roi_format(boxes),
            self.output_size,
            self.scales,
            self.sampling_ratio,
            self.aligned,
            canonical_box_size=self.canonical_scale * _LEVEL_EPSILON,
            canonical_level=self.canonical_level,
        )
