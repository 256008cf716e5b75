"""RoI pooling over torchvision's operators, where these compute the same: modes "avg" and "pool".

Other modes, and boxes for which torchvision's operators run for hours or overflow, go to the eager path. RoIs
are never rounded to the dtype of half-precision features: the features are widened instead.
"""

import torch
import torchvision  # noqa: F401  (defines the operators)
from torch import Tensor

from . import roi_align_eager as eager
from .roi_options import RoIOptions


def _split(features: list[Tensor], rois: Tensor, options: RoIOptions) -> tuple[list[Tensor], Tensor]:
    """Indices of the RoIs torchvision can pool, per level, and of the rest."""
    eager.check_batch_indices(features, rois)
    scales, canonical = options.spatial_scales, (options.canonical_box_size, options.canonical_level)
    levels = eager.assign_levels(rois, scales, *canonical)
    common = torch.zeros_like(levels, dtype=torch.bool)
    if options.mode in ("avg", "pool"):
        for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
            # torchvision visits every sample of a bin, and casts edges to int.
            limit = 4 * max(feature.shape[2:]) + 64
            within = (rois[:, 1:] * scale).abs() <= limit
            common |= (levels == level) & within.all(1) & (0 not in feature.shape)
    per_level = [torch.nonzero(common & (levels == i)).flatten() for i in range(len(features))]
    return per_level, torch.nonzero(~common).flatten()


def roi_align(features: list[Tensor], rois: Tensor, options: RoIOptions) -> Tensor:
    """The operator ``mrcnn_ext::roi_align``, forward."""
    wide = torch.promote_types(features[0].dtype, torch.float32)
    rois = rois.detach().to(wide)
    per_level, rest = _split(features, rois, options)
    size, scales = options.bins, options.spatial_scales
    shape = (rois.shape[0], features[0].shape[1], *size)
    out = eager.empty_like_layout(features[0], shape, features[0].dtype)
    for feature, index, scale in zip(features, per_level, scales, strict=True):
        if len(index):
            if options.mode == "avg":
                pooled = torch.ops.torchvision.roi_align(
                    feature.to(wide), rois[index], scale, *size, options.sampling_ratio, options.aligned
                )
            else:
                pooled = torch.ops.torchvision.roi_pool(feature.to(wide), rois[index], scale, *size)[0]
            out[index] = pooled.to(out.dtype)
    if len(rest):
        out[rest] = eager.roi_align(features, rois[rest], options)
    return out


def roi_align_backward(
    grad: Tensor,
    features: list[Tensor],
    rois: Tensor,
    options: RoIOptions,
    rois_need_grad: bool,
) -> tuple[list[Tensor], Tensor]:
    """The operator ``mrcnn_ext::roi_align_backward``."""
    wide = torch.promote_types(features[0].dtype, torch.float32)
    wide_rois = rois.detach().to(wide)
    per_level, rest = _split(features, wide_rois, options)
    size, scales = options.bins, options.spatial_scales
    # Also for no RoI at all: gradients in the right layout.
    feature_grads, rest_grad = eager.roi_align_backward(
        grad[rest], features, rois[rest], options, rois_need_grad
    )
    for i, (feature, index, scale) in enumerate(zip(features, per_level, scales, strict=True)):
        if len(index):
            args = (grad[index].to(wide), wide_rois[index])
            if options.mode == "avg":
                added = torch.ops.torchvision._roi_align_backward(
                    *args, scale, *size, *feature.shape, options.sampling_ratio, options.aligned
                )
            else:
                best = torch.ops.torchvision.roi_pool(feature.to(wide), args[1], scale, *size)[1]
                added = torch.ops.torchvision._roi_pool_backward(*args, best, scale, *size, *feature.shape)
            feature_grads[i] += added.to(feature.dtype)
    rois_grad = torch.zeros((rois.shape[0] if rois_need_grad else 0, 5), dtype=rois.dtype, device=rois.device)
    if rois_need_grad:
        rois_grad[rest] = rest_grad
    return feature_grads, rois_grad
