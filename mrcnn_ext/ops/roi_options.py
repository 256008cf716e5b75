"""How RoIs are pooled, as one object, and what a pyramid is."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

__all__ = ["RoIOptions", "check_pyramid"]


class RoIOptions(NamedTuple):
    """The arguments of ``mrcnn_ext::roi_align`` after the features and the RoIs, in the order of its schema; see
    `roi_align_pyramid` for what they mean."""

    spatial_scales: list[float]
    pooled_height: int
    pooled_width: int
    sampling_ratio: int
    aligned: bool
    mode: str
    canonical_box_size: float
    canonical_level: int

    @property
    def bins(self) -> tuple[int, int]:
        return self.pooled_height, self.pooled_width


def check_pyramid(scales: Sequence[float], name: str) -> None:
    """
    Args:
        scales: feature cells per pixel of the input image, one per level.
        name: of the argument, for the error.

    Raises:
        ValueError: a scale is not positive and finite, or those of several levels are not consecutive powers of two,
            finest first.
    """
    if not _is_pyramid(tuple(scales)):
        raise ValueError(
            f"{name} must be positive and finite, and of several levels consecutive powers of two, finest first "
            f"(1/4, 1/8, ...), each half the one before, got {list(scales)}"
        )


@cache
def _is_pyramid(scales: tuple[float, ...]) -> bool:
    right = len(scales) > 0 and all(scale > 0 and math.isfinite(scale) for scale in scales)
    if right and len(scales) > 1:
        exponents = [-math.log2(scale) for scale in scales]
        finest = round(exponents[0])
        right = all(abs(k - finest - i) <= 1e-6 for i, k in enumerate(exponents))
    return right
