"""What each RoI layer reads for a box, and how its output changes when the box moves by part of a feature cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..engine.errors import UserError
from ..layers import roi_align_pyramid
from ..ops.roi_options import RoIOptions
from ..ops.roi_sampling import RoISamples, roi_samples

__all__ = [
    "LAYERS",
    "Projection",
    "Pyramid",
    "change_by_shift",
    "moved",
    "pooled",
    "relative_change",
    "samples",
]

# name -> (mode, aligned) of `roi_align_pyramid`: the layers of Mask R-CNN's table 2c, and Precise RoI Pooling.
LAYERS = {
    "RoIPool": ("pool", False),
    "RoIWarp": ("warp_avg", False),
    "RoIAlign": ("avg", True),
    "PrRoIPool": ("exact", True),
}


@dataclass(frozen=True)
class Pyramid:
    """
    Attributes:
        maps: (1, C, H, W) float32 per level, finest first.
        options: how a head pools from them.
        names: of the levels.
    """

    maps: list[Tensor]
    options: RoIOptions
    names: tuple[str, ...]

    def stride(self, level: int) -> float:
        """Pixels of the model's image per cell."""
        return 1 / self.options.spatial_scales[level]


def _options(pyramid: Pyramid, layer: str) -> RoIOptions:
    mode, aligned = LAYERS[layer]
    return pyramid.options._replace(mode=mode, aligned=aligned)


def samples(pyramid: Pyramid, box: Tensor, layer: str) -> RoISamples:
    """Where a layer reads the feature map for a box.

    Args:
        box: (4,) in pixels of the model's image.
        layer: a key of `LAYERS`.

    Raises:
        UserError: the box has no area.
    """
    try:
        return roi_samples(box, _options(pyramid, layer))
    except ValueError as error:
        raise UserError(str(error)) from None


def moved(box: Tensor, cells_x: float, cells_y: float, stride: float) -> Tensor:
    """A box (4,) that is moved by so many feature cells of ``stride`` pixels."""
    shift = torch.tensor([cells_x, cells_y] * 2, dtype=torch.float32) * stride
    return box.float() + shift


def pooled(pyramid: Pyramid, boxes: Tensor, layer: str) -> Tensor:
    """What a layer makes of boxes.

    All come from the level of the first box, so that a box that grows or moves is not compared across levels.

    Args:
        boxes: (R, 4) in pixels of the model's image.
        layer: a key of `LAYERS`.

    Returns:
        (R, C, P_h, P_w) float32.
    """
    options = _options(pyramid, layer)
    level = roi_samples(boxes[0], options).level
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes.float()], dim=1)
    scale = options.spatial_scales[level]
    return roi_align_pyramid(
        [pyramid.maps[level]],
        rois,
        options.bins,
        [scale],
        options.sampling_ratio,
        options.aligned,
        options.mode,
    )


def relative_change(output: Tensor, reference: Tensor) -> float:
    """Norm of the difference of two outputs over the norm of the reference; 0 where both are 0."""
    norm = float(reference.norm())
    difference = float((output - reference).norm())
    return difference / norm if norm > 0 else float(difference > 0)


def change_by_shift(
    pyramid: Pyramid, box: Tensor, shifts: Sequence[float], vertical: bool = False
) -> dict[str, list[float]]:
    """How far the output of each layer is from that of the box in its place when the box is moved.

    Args:
        box: (4,) in pixels of the model's image.
        shifts: in feature cells.
        vertical: move down, or else to the right.

    Returns:
        Per layer, a `relative_change` per shift.
    """
    stride = pyramid.stride(samples(pyramid, box, "RoIAlign").level)
    places = [moved(box, *((0.0, s) if vertical else (s, 0.0)), stride) for s in shifts]
    boxes = torch.stack([box.float(), *places])
    outputs = {layer: pooled(pyramid, boxes, layer) for layer in LAYERS}
    return {
        layer: [relative_change(row, output[0]) for row in output[1:]] for layer, output in outputs.items()
    }


class Projection:
    """Colours for pooled features, the same for all of them.

    Args:
        reference: (C, P_h, P_w) outputs that fix the scale, and the components of "PCA".
        kind: "PCA" shows the three directions of largest variance as red, green and blue, "mean" the mean of the
            channels, a number that channel.
    """

    def __init__(self, reference: Sequence[Tensor], kind: str | int):
        self.kind = kind
        cells = torch.cat([output.flatten(1) for output in reference], dim=1).T.double()  # (cells, C)
        self._centre = cells.mean(0)
        self._directions = _principal_directions(cells - self._centre) if kind == "PCA" else None
        values = self._values(cells)
        self._low, self._high = values.min(0).values, values.max(0).values

    def __call__(self, output: Tensor) -> np.ndarray:
        """(C, P_h, P_w) -> (P_h, P_w, 3) of "PCA", or else (P_h, P_w); float in [0, 1]."""
        values = self._values(output.flatten(1).T.double())
        spread = (self._high - self._low).clamp(min=1e-12)
        scaled = ((values - self._low) / spread).clamp(0, 1)
        image = scaled.reshape(*output.shape[1:], -1).numpy()
        return image if self.kind == "PCA" else image[:, :, 0]

    def _values(self, cells: Tensor) -> Tensor:
        if self._directions is not None:
            return (cells - self._centre) @ self._directions
        return cells.mean(1, keepdim=True) if self.kind == "mean" else cells[:, int(self.kind), None]


def _principal_directions(centred: Tensor) -> Tensor:
    """(C, 3), with signs that do not depend on the solver; zeros where there are fewer."""
    _, _, rows = torch.linalg.svd(centred, full_matrices=False)
    directions = torch.zeros(centred.shape[1], 3, dtype=centred.dtype)
    rows = rows[:3]
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    directions[:, : len(rows)] = (rows * largest.sign()).T
    return directions
