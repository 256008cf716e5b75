"""RoI pooling layers of the Mask R-CNN paper, on one feature map or on a whole pyramid."""

import math

import torch
import torchvision
from torch import Tensor

__all__ = ["roi_align", "roi_align_pyramid"]


def _assign_levels(
    rois: Tensor, spatial_scales: list[float], canonical_box_size: float, canonical_level: int
) -> Tensor:
    min_level = round(-math.log2(spatial_scales[0]))
    sizes = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    levels = torch.floor(canonical_level + torch.log2(sizes / canonical_box_size + 1e-8)) - min_level
    return levels.clamp(0, len(spatial_scales) - 1).nan_to_num(0.0).long()


def _pool_level(
    feature: Tensor, rois: Tensor, output_size, spatial_scale: float, sampling_ratio, aligned, mode
) -> Tensor:
    x = feature if feature.dtype in (torch.float32, torch.float64) else feature.float()
    rois = rois.to(x.dtype)
    if mode == "avg":
        out = torchvision.ops.roi_align(x, rois, output_size, spatial_scale, sampling_ratio, aligned)
    elif mode == "pool":
        out = torchvision.ops.roi_pool(x, rois, output_size, spatial_scale)
    else:
        raise ValueError(f'mode must be "avg" or "pool", got {mode!r}')
    return out.to(feature.dtype)


def roi_align_pyramid(
    features: list[Tensor],
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scales: list[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
    canonical_box_size: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """Pools every box from the pyramid level its size asks for (FPN, eq. 1), in one call.

    Args:
        features: one (N, C, H_l, W_l) map per level, finest first.
        boxes: (R, 5) rows [batch index, x0, y0, x1, y1], in pixels of the input image.
        output_size: P, or (P_h, P_w), in bins.
        spatial_scales: per level, feature cells per input pixel.
        sampling_ratio: samples per bin and axis; <= 0 means ceil(RoI extent / P).
        aligned: True puts cell centres at half integers (shifts by -0.5 cell).
        mode: "avg" or "pool".
        canonical_box_size, canonical_level: k0 = canonical_level for a box of this side, in pixels.

    Returns:
        (R, C, P_h, P_w), in the dtype of the features.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(features) == 1:
        return _pool_level(features[0], boxes, size, spatial_scales[0], sampling_ratio, aligned, mode)
    levels = _assign_levels(boxes, spatial_scales, canonical_box_size, canonical_level)
    out = features[0].new_zeros((boxes.shape[0], features[0].shape[1], *size))
    for level, (feature, scale) in enumerate(zip(features, spatial_scales, strict=True)):
        index = torch.nonzero(levels == level).squeeze(1)
        pooled = _pool_level(feature, boxes[index], size, scale, sampling_ratio, aligned, mode)
        out = out.index_put((index,), pooled)
    return out


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
) -> Tensor:
    """torchvision.ops.roi_align with the choice of the RoI layer (`mode`); see `roi_align_pyramid`.

    Args:
        input: (N, C, H, W).
        boxes: (R, 5) rows [batch index, x0, y0, x1, y1], or a list of (L_i, 4), one per image.

    Returns:
        (R, C, P_h, P_w), in the dtype of the input.
    """
    if not isinstance(boxes, Tensor):
        index = torch.repeat_interleave(torch.tensor([len(b) for b in boxes], device=input.device))
        all_boxes = torch.cat(list(boxes))
        boxes = torch.cat([index.to(all_boxes.dtype)[:, None], all_boxes], dim=1)
    return roi_align_pyramid([input], boxes, output_size, [spatial_scale], sampling_ratio, aligned, mode)
