"""The RoI pooling layers of Mask R-CNN (He et al. 2017, section 3, table 2c), on one map or on a pyramid."""

import torch
from torch import Tensor
from torch.jit.annotations import BroadcastingList2
from torch.nn.modules.utils import _pair

from ._roi_align_op import pool
from .roi_align_eager import AVERAGE_MODES, MAX_MODES
from .roi_align_onnx import roi_align_for_onnx
from .roi_options import RoIOptions, check_pyramid

__all__ = ["MODES", "roi_align", "roi_align_pyramid"]

MODES = ("avg", "max", "warp_avg", "warp_max", "pool", "exact")
assert set(MODES) == {*AVERAGE_MODES, *MAX_MODES}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def roi_align_pyramid(
    features: list[Tensor],
    boxes: Tensor,
    output_size: BroadcastingList2[int],
    spatial_scales: list[float],
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
    canonical_box_size: float = 224.0,
    canonical_level: int = 4,
) -> Tensor:
    """Pools every box from the pyramid level that its size asks for, in one call.

    The level is ``floor(canonical_level + log2(sqrt(w h) / canonical_box_size))``, clamped to the levels
    there are (FPN, Lin et al. 2017, eq. 1, as detectron2's ``assign_boxes_to_levels`` computes it); one map
    needs no assignment. A box with a coordinate that is not finite pools to zeros and has no gradient; so
    does, among several levels, a box of negative area.

    Args:
        features: one map (N, C, H_l, W_l) per level, finest first; float64, float32, bfloat16 or float16.
        boxes: (R, 5) rows [batch index, x0, y0, x1, y1], in pixels of the input image. Taken as float32, or
            as float64 if the features are; never narrower.
        output_size: bins (P_h, P_w), or one number for both.
        spatial_scales: feature cells per pixel of the input image, one per level: 2**-k for several levels,
            halved from each to the next.
        sampling_ratio: bilinear samples per bin and axis; <= 0 means ceil(RoI extent / bins), in cells.
        aligned: True puts the centre of the first cell at 0.5 cells rather than at 0, as detectron2's models
            do since its ROIAlignV2, and lets a RoI be smaller than one cell.
        mode: "avg", "max": RoIAlign, bilinear samples at regular points of each bin, then mean or maximum.
            "warp_avg", "warp_max": RoIWarp; the RoI's corners are rounded to cells as RoIPool's first.
            "pool": RoIPool (Fast R-CNN, Girshick 2015); `sampling_ratio` and `aligned` are ignored.
            "exact": Precise RoI Pooling (Jiang et al. 2018); the mean of the bilinear interpolant over each
            bin, differentiable in the boxes too; `sampling_ratio` is ignored.
        canonical_box_size: side, in pixels, of a square box of level `canonical_level`.
        canonical_level: k of that level, whose stride is 2**k pixels.

    Returns:
        (R, C, P_h, P_w), in the dtype, on the device and in the memory format of the features. Outputs and
        gradients of the compiled operator are the same to the bit in every run, on CUDA too.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or device, or a batch index in
            `boxes` is not one of the features' (on CUDA the compiled operator does not look: such a box gives
            zeros). On CUDA also: more than 8 levels, 2,097,120 channels or 2**24 bins; in the max modes more
            than 2**15 samples per bin and axis, or a map with (2 H + 3) (2 W + 3) >= 2**31.
        NotImplementedError: the double backward of the max modes, or of "exact" with gradients of the boxes.
    """
    height, width = _pair(output_size)
    if not torch.jit.is_scripting() and not torch.jit.is_tracing():
        _check(features, boxes, height, width, spatial_scales, sampling_ratio, mode)
    rois = boxes.double() if features[0].dtype == torch.float64 else boxes.float()
    if torch.jit.is_scripting():
        return torch.ops.mrcnn_ext.roi_align(
            features,
            rois,
            spatial_scales,
            height,
            width,
            sampling_ratio,
            aligned,
            mode,
            canonical_box_size,
            canonical_level,
        )
    options = RoIOptions(
        [float(scale) for scale in spatial_scales],
        height,
        width,
        sampling_ratio,
        aligned,
        mode,
        float(canonical_box_size),
        canonical_level,
    )
    if torch.onnx.is_in_onnx_export():
        return roi_align_for_onnx(list(features), rois, options)
    return pool(list(features), rois, options)


def roi_align(
    input: Tensor,
    boxes: Tensor | list[Tensor],
    output_size: BroadcastingList2[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
    mode: str = "avg",
) -> Tensor:
    """`torchvision.ops.roi_align` with a choice of RoI layers, by `mode`.

    Args:
        input: (N, C, H, W); float64, float32, bfloat16 or float16.
        boxes: (R, 5) rows [batch index, x0, y0, x1, y1], or a list of N tensors (L_i, 4), one per image.
        output_size, sampling_ratio, aligned, mode: see `roi_align_pyramid`.
        spatial_scale: feature cells per unit of the boxes.

    Returns:
        (R, C, P_h, P_w), in the dtype, on the device and in the memory format of the input.

    Raises:
        As `roi_align_pyramid`.
    """
    if isinstance(boxes, Tensor):
        rois = boxes
    else:
        if not torch.jit.is_scripting():
            _check_list(input, boxes)
        rows = [torch.cat([torch.full_like(b[:, :1], i), b], dim=1) for i, b in enumerate(boxes)]
        rois = torch.cat(rows) if len(rows) > 0 else input.new_zeros((0, 5), dtype=torch.float32)
    return roi_align_pyramid([input], rois, output_size, [spatial_scale], sampling_ratio, aligned, mode)


def _check_list(input: Tensor, boxes: list[Tensor]) -> None:
    if not isinstance(boxes, (list, tuple)) or not all(isinstance(b, Tensor) for b in boxes):
        raise TypeError(
            f"boxes must be a tensor (R, 5) or a list of tensors (L, 4), got {type(boxes).__name__}"
        )
    if isinstance(input, Tensor) and input.ndim == 4 and len(boxes) != input.shape[0]:
        raise ValueError(f"boxes: {len(boxes)} tensors in the list for a batch of {input.shape[0]}")
    for i, b in enumerate(boxes):
        if b.ndim != 2 or b.shape[1] != 4:
            raise ValueError(f"boxes[{i}] must have shape (L, 4), got {tuple(b.shape)}")


def _name(index: int, features) -> str:
    return f"features[{index}]" if len(features) > 1 else "input"


def _check(features, boxes, height, width, spatial_scales, sampling_ratio, mode) -> None:
    if not isinstance(features, (list, tuple)) or not features:
        raise TypeError("features must be a list with one tensor (N, C, H, W) per level")
    for i, feature in enumerate(features):
        if not isinstance(feature, Tensor):
            raise TypeError(f"{_name(i, features)} must be a tensor, got {type(feature).__name__}")
    # Asked for once: each costs about a microsecond, as much as a small kernel.
    first = features[0]
    dtype, device, batch_and_channels = first.dtype, first.device, first.shape[:2]
    for i, feature in enumerate(features):
        if feature.ndim != 4:
            raise ValueError(f"{_name(i, features)} must have shape (N, C, H, W), got {tuple(feature.shape)}")
        if feature.dtype not in _DTYPES:
            raise TypeError(
                f"{_name(i, features)} must be float64, float32, bfloat16 or float16, got {feature.dtype}"
            )
        if feature is first:
            continue
        if feature.dtype != dtype or feature.device != device:
            raise ValueError(
                f"{_name(i, features)} is {feature.dtype} on {feature.device}, and features[0] is {dtype} on "
                f"{device}: they must be alike"
            )
        if feature.shape[:2] != batch_and_channels:
            raise ValueError(
                f"{_name(i, features)} must have the batch and channels of features[0], "
                f"{tuple(batch_and_channels)}, got {tuple(feature.shape)}"
            )
    if not isinstance(boxes, Tensor):
        raise TypeError(f"boxes must be a tensor (R, 5), got {type(boxes).__name__}")
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise ValueError(
            f"boxes must have shape (R, 5), rows [batch index, x0, y0, x1, y1], got {tuple(boxes.shape)}"
        )
    if not boxes.is_floating_point():
        raise TypeError(f"boxes must be of a floating point dtype, got {boxes.dtype}")
    if boxes.device != device:
        raise ValueError(f"boxes are on {boxes.device}, the features on {device}")
    if height < 1 or width < 1:
        raise ValueError(f"output_size must be at least 1, got ({height}, {width})")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    if not isinstance(sampling_ratio, int):
        raise TypeError(f"sampling_ratio must be an int, got {type(sampling_ratio).__name__}")
    if len(spatial_scales) != len(features):
        raise ValueError(f"spatial_scales: {len(spatial_scales)} scales for {len(features)} feature maps")
    check_pyramid(spatial_scales, "spatial_scales")
