"""RoI pooling for torch.onnx: made of operators that ONNX has."""

import torch
import torchvision
from torch import Tensor

from .roi_align_eager import assign_levels
from .roi_options import RoIOptions

_WHY_NOT = {
    "max": "ONNX's RoiAlign takes the maximum over the weighted corner cells of samples, not over samples",
    "warp_avg": "ONNX has no operator for RoIWarp",
    "warp_max": "ONNX has no operator for RoIWarp",
    "pool": "ONNX's MaxRoiPool needs RoIs that are known at export",
    "exact": "ONNX has no operator for Precise RoI Pooling",
}


def roi_align_for_onnx(features: list[Tensor], rois: Tensor, options: RoIOptions) -> Tensor:
    """The operator ``mrcnn_ext::roi_align`` in mode "avg": a standard RoiAlign per level, gather and scatter.

    Raises:
        NotImplementedError: another mode.
    """
    mode, scales = options.mode, options.spatial_scales
    if mode != "avg":
        raise NotImplementedError(f'roi_align: mode "{mode}" has no ONNX export: {_WHY_NOT[mode]}')

    def pool(feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        pooled = torchvision.ops.roi_align(
            feature.to(rois.dtype), rois, options.bins, scale, options.sampling_ratio, options.aligned
        )
        return pooled.to(feature.dtype)

    if len(features) == 1:
        return pool(features[0], rois, scales[0])
    levels = assign_levels(rois, scales, options.canonical_box_size, options.canonical_level)
    out = features[0].new_zeros((rois.shape[0], features[0].shape[1], *options.bins))
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        index = torch.nonzero(levels == level).flatten()
        out = out.index_put((index,), pool(feature, rois[index], scale))
    return out
