"""RoI pooling for torch.onnx: made of operators that ONNX has."""

import torch
import torchvision
from torch import Tensor

from .roi_align_eager import assign_levels

_WHY_NOT = {
    "max": "ONNX's RoiAlign takes the maximum over the weighted corner cells of samples, not over samples",
    "warp_avg": "ONNX has no operator for RoIWarp",
    "warp_max": "ONNX has no operator for RoIWarp",
    "pool": "ONNX's MaxRoiPool needs RoIs that are known at export",
    "exact": "ONNX has no operator for Precise RoI Pooling",
}


def roi_align_for_onnx(
    features: list[Tensor],
    rois: Tensor,
    spatial_scales: list[float],
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
    mode: str,
    canonical_box_size: float,
    canonical_level: int,
) -> Tensor:
    """The operator ``mrcnn_ext::roi_align`` in mode "avg": a standard RoiAlign per level, gather and scatter.

    Raises:
        NotImplementedError: another mode.
    """
    if mode != "avg":
        raise NotImplementedError(f'roi_align: mode "{mode}" has no ONNX export: {_WHY_NOT[mode]}')

    def pool(feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        size = (pooled_height, pooled_width)
        pooled = torchvision.ops.roi_align(feature.to(rois.dtype), rois, size, scale, sampling_ratio, aligned)
        return pooled.to(feature.dtype)

    if len(features) == 1:
        return pool(features[0], rois, spatial_scales[0])
    levels = assign_levels(rois, spatial_scales, canonical_box_size, canonical_level)
    out = features[0].new_zeros((rois.shape[0], features[0].shape[1], pooled_height, pooled_width))
    for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        index = torch.nonzero(levels == level).flatten()
        out = out.index_put((index,), pool(feature, rois[index], scale))
    return out
