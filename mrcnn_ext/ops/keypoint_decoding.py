"""From keypoint heatmaps to image coordinates, without resizing any heatmap to its box."""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import _extension

_METHODS = ("stock", "dark", "quadratic", "oks")


def heatmaps_to_keypoints(
    maps: Tensor,
    rois: Tensor,
    method: str = "stock",
    sigmas: Tensor | None = None,
    covered: float = 0.53,
) -> Tensor:
    """Decodes one keypoint per heatmap; a drop-in for ``detectron2.structures.heatmaps_to_keypoints``.

    All heatmaps are decoded in one batch on their device, at a cost that does not depend on the boxes' sizes.
    Not differentiable, as detectron2's is not used for training either.

    ``"stock"`` is detectron2's result: of the pixels of the box, its sides rounded up, the one at which the
    heatmap resized to that size (bicubic) is largest. On the CPU the compiled operator finds it exactly. The
    search in PyTorch, used elsewhere and in exported programs, may pass over a peak that is narrow and all
    but tied with another.

    ``"quadratic"`` refines the largest cell by a second-order Taylor expansion of the logits around it.
    ``"dark"`` expands the logarithm of the probabilities smoothed by a Gaussian instead (Zhang et al.,
    *Distribution-Aware Coordinate Representation for Human Pose Estimation*, CVPR 2020, eq. 3 to 11). Both
    move by one cell per axis at most, and leave cells at the heatmap's border where they are.

    ``"oks"`` is the place at which the object keypoint similarity to a keypoint drawn from the heatmap's softmax
    is highest on average: the place to give where COCO's AP is the measure (Purkrabek and Matas, *ProbPose: A
    Probabilistic Approach to 2D Human Pose Estimation*, CVPR 2025).

    Args:
        maps: (R, K, H, W) heatmap logits of any floating dtype; decoded in fp32 or wider.
        rois: (R, 4) boxes, x0, y0, x1, y1 in pixels; sides below one pixel count as one.
        method: "stock", "dark", "quadratic" or "oks".
        sigmas: (K,) of object keypoint similarity, for "oks".
        covered: part of its RoI that an object covers, for "oks"; 0.53 is about what people cover of their box.

    Returns:
        (R, K, 4): x, y in pixels of the image (the centre of the first pixel is at 0.5), logit, score.
        The logit is that of the resized map at x, y for "stock", that of the refined cell otherwise. The
        score is ``exp(logit)`` over the sum of ``exp(maps)`` over the H x W cells, detectron2's measure for
        COCO; for "oks" it is the expected similarity. Float64 for float64 maps, else float32.

    Raises:
        TypeError: maps or rois are not floating point tensors.
        ValueError: a wrong shape, an unknown method, or no sigmas for "oks".
    """
    _check(maps, rois, method, sigmas)
    dtype = torch.promote_types(maps.dtype, torch.float32)
    maps, rois = maps.detach().to(dtype), rois.detach().to(dtype)
    # A list of indices would be copied from the host, for which CUDA waits.
    start = rois[:, :2].flip(1)
    length = (rois[:, 2:].flip(1) - start).clamp(min=1)
    with torch.autocast(maps.device.type, enabled=False):
        if method == "stock":
            pixels = length.ceil()
            place, logit = _resized_argmax(maps, pixels)
        else:
            pixels = _vector(maps.shape[2:], maps)
            if method == "oks":
                assert sigmas is not None  # _check has seen to it
                similarity = _expected_similarity(maps, covered * length.prod(dim=1), length, sigmas.to(maps))
                place, logit, height = _taylor_maximum(maps, similarity.clamp(min=_TINY).log(), margin=1)
            else:
                surface = _smoothed_log_probability(maps) if method == "dark" else maps
                place, logit, _ = _taylor_maximum(maps, surface)
        if method == "oks":
            score = height.exp().clamp(max=1)
        else:
            score = torch.exp(logit - torch.logsumexp(maps.flatten(2), dim=2))
    y, x = ((place + 0.5) * (length / pixels)[:, None] + start[:, None]).unbind(2)
    return torch.stack([x, y, logit, score], dim=2)


def without_logits(keypoints: Tensor) -> Tensor:
    """Of results (..., 4) of `heatmaps_to_keypoints` detectron2's x, y and score, (..., 3). A list of indices would be
    copied from the host, for which CUDA waits."""
    return torch.cat([keypoints[..., :2], keypoints[..., 3:]], -1)


def _vector(numbers, like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of a tensor. ``torch.tensor`` would copy them from the host, for which
    CUDA waits."""
    return torch.stack([like.new_full((), number) for number in numbers])


def _check(maps: Tensor, rois: Tensor, method: str, sigmas: Tensor | None) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}; got {method!r}")
    for name, value in (("maps", maps), ("rois", rois)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if maps.dim() != 4 or 0 in maps.shape[1:]:
        raise ValueError(f"maps must have shape (R, K, H, W) with K, H, W >= 1, got {tuple(maps.shape)}")
    if rois.dim() != 2 or rois.shape[1] != 4 or rois.shape[0] != maps.shape[0]:
        expected = f"(R, 4) with maps' R = {maps.shape[0]}"
        raise ValueError(f"rois must have shape {expected}, got {tuple(rois.shape)}")
    if method == "oks" and (sigmas is None or tuple(sigmas.shape) != tuple(maps.shape[1:2])):
        given = "none" if sigmas is None else f"shape {tuple(sigmas.shape)}"
        raise ValueError(
            f"sigmas must have shape (K,) = ({maps.shape[1]},) for the method 'oks', got {given}"
        )


def _resized_argmax(maps: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest pixel of the maps resized to `pixels`, (R, 2).

    Returns:
        Its place (R, K, 2), y before x, and its value (R, K).
    """
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    if maps.device.type == "cpu" and not exporting:
        if _extension.is_available() and _extension.backend() == "compiled":
            place, value = torch.ops.mrcnn_ext.resized_heatmap_argmax(maps, pixels.long())
            return place.to(maps.dtype), value
        if not _extension.is_forced():
            _extension.warn_fallback("cpu", "Keypoint decoding")
    if exporting or torch.compiler.is_compiling():
        return _search(maps, pixels)
    boxes = max(1, _SAMPLES_AT_A_TIME // (_SAMPLES_PER_CELL**2 * maps.shape[1:].numel()))
    chunks = [_search(m, p) for m, p in zip(maps.split(boxes), pixels.split(boxes), strict=True)]
    return torch.cat([place for place, _ in chunks]), torch.cat([value for _, value in chunks])


if _extension.is_available():

    @torch.library.register_fake("mrcnn_ext::resized_heatmap_argmax")
    def _fake(maps: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        R, K = maps.shape[:2]
        return sizes.new_empty((R, K, 2)), maps.new_empty((R, K))


# --- the search in PyTorch ---------------------------------------------------------------------------------
#
# The resized map holds values of one function, the bicubic interpolant, at a grid of pixels. The search samples
# it three times per cell and axis (at every pixel where there are no more), keeps the peaks which promise most,
# and narrows a window around each until it has seen every pixel there. Lists and leading dimensions of two hold
# y, then x.

_SAMPLES_PER_CELL = 3
_SAMPLES_AT_A_TIME = 2**24
_BLOCK = 3  # samples; of so many squared one at most becomes a candidate
_CANDIDATES = 48  # by their samples
_REACH = 2.0  # how far a window reaches, in distances between the places seen before
_LIMIT = 3.0  # how far windows may move, in distances between samples: a cell
_TAPS = 7  # cells which the bicubic kernel touches within that limit
_ROUNDS = ((12, 9), (4, 17), (1, 17), (1, 17))  # candidates; places seen per axis


def _search(maps: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    sides = maps.shape[2:]
    cells = _vector(sides, maps).view(2, 1, 1, 1)
    pixels = pixels.T[:, :, None, None]  # (2, R, 1, 1)
    scale = cells / pixels
    spacing = (pixels / (_SAMPLES_PER_CELL * cells)).clamp(min=1)
    padded = F.pad(maps, (2, 5, 2, 5), mode="replicate")  # by the kernel's reach, and a window's taps

    samples, kernels = [], []
    for axis, side in enumerate(sides):
        steps = torch.arange(_SAMPLES_PER_CELL * side, dtype=maps.dtype, device=maps.device)
        pixel = ((steps + 0.5) * spacing[axis] - 0.5).minimum(pixels[axis] - 1)  # (R, 1, samples)
        samples.append(pixel)
        kernels.append(_cubic_kernel(scale[axis] * (pixel + 0.5) + 1.5, padded.shape[2 + axis]))
    values = kernels[0] @ (padded @ kernels[1].mT)

    peaks, index = F.max_pool2d(values, _BLOCK, _BLOCK, ceil_mode=True, return_indices=True)
    peaks, index = peaks.flatten(2), index.flatten(2)
    index = index.gather(2, peaks.topk(min(_CANDIDATES, peaks.shape[2]), dim=2).indices)
    # The interpolant rises between samples, but only along axes on which there are pixels between samples.
    _, promise = _parabola(values, index, along=spacing > 1)
    index = index.gather(2, promise.topk(min(_ROUNDS[0][0], promise.shape[2]), dim=2).indices)
    centre = _take(samples, index, values.shape[3])  # (2, R, K, candidates)

    # Where all pixels are samples a window is for those which gain from one along the other axis.
    neighbours = (pixels / cells).floor().clamp(max=_REACH)
    reach = torch.where(spacing > 1, _REACH * spacing, neighbours)
    limit = torch.where(spacing > 1, _LIMIT * spacing, neighbours)
    low = (centre - limit).round().clamp(min=0)
    high = (centre + limit).round().minimum(pixels - 1)
    origin = (scale * (low + 0.5) + 1.5).floor() - 1
    row, column = (origin[..., None].long() + torch.arange(_TAPS, device=maps.device)).unbind(0)
    cell = row[..., :, None] * padded.shape[3] + column[..., None, :]
    patch = padded.flatten(2).gather(2, cell.flatten(2)).view(cell.shape)

    best = None
    for candidates, count in _ROUNDS:
        if best is not None:
            keep = best.topk(min(candidates, best.shape[2]), dim=2).indices
            centre, low, high, origin = (
                value.gather(3, keep.expand(2, -1, -1, -1)) for value in (centre, low, high, origin)
            )
            patch = patch.gather(2, keep[..., None, None].expand(-1, -1, -1, _TAPS, _TAPS))
        pixel = torch.linspace(-1, 1, count, dtype=maps.dtype, device=maps.device) * reach[..., None]
        pixel = (centre[..., None] + pixel).round().maximum(low[..., None]).minimum(high[..., None])
        kernel = _cubic_kernel(scale[..., None] * (pixel + 0.5) + 1.5 - origin[..., None], _TAPS)
        best, index = (kernel[0] @ patch @ kernel[1].mT).flatten(3).max(dim=3)
        centre = _take(pixel, index[..., None], count)[..., 0]
        reach = reach * (2 * _REACH / (count - 1))
    assert best is not None  # there are rounds
    return centre[..., 0].permute(1, 2, 0), best[..., 0]


def _cubic_kernel(position: Tensor, taps: int) -> Tensor:
    """Weights (..., taps) of cells 0, 1, ... in PyTorch's bicubic interpolation (Keys 1981, a = -0.75)."""
    d = (position[..., None] - torch.arange(taps, dtype=position.dtype, device=position.device)).abs()
    near = (1.25 * d - 2.25) * d * d + 1
    far = ((-0.75 * d + 3.75) * d - 6) * d + 3
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))


def _take(pixels, index: Tensor, width: int) -> Tensor:
    """Pixels (2, ...) at the flat places `index` of the grid spanned by pixels[0] and pixels[1]."""
    places = (index // width, index % width)
    return torch.stack(
        [pixel.expand(*i.shape[:-1], -1).gather(-1, i) for pixel, i in zip(pixels, places, strict=True)]
    )


# --- second-order expansion --------------------------------------------------------------------------------


def _parabola(surface: Tensor, index: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """Expands (R, K, H, W) to the second order around flat places (R, K, C), along axes (2, ...) only.

    Returns:
        Offsets (2, R, K, C), y before x, of at most one place, to the maximum of the expansion, zero where there
        is none; and its height (R, K, C) there, -inf where a neighbour is larger than the place itself.
    """
    W = surface.shape[3]
    around = F.pad(surface, (1, 1, 1, 1), mode="replicate").flatten(2)

    def at(dy: int, dx: int) -> Tensor:
        return around.gather(2, (index // W + dy + 1) * (W + 2) + index % W + dx + 1)

    middle, north, south, west, east = at(0, 0), at(-1, 0), at(1, 0), at(0, -1), at(0, 1)
    corners = at(-1, -1), at(-1, 1), at(1, -1), at(1, 1)
    gy, gx = torch.where(along, torch.stack([south - north, east - west]) / 2, 0)
    hyy, hxx = torch.where(along, torch.stack([south + north, east + west]) - 2 * middle, -1)
    hxy = torch.where(along.all(dim=0), (corners[0] - corners[1] - corners[2] + corners[3]) / 4, 0)
    determinant = hyy * hxx - hxy * hxy
    maximum = (hyy < 0) & (determinant > 0)
    determinant = torch.where(maximum, determinant, 1)
    offset = torch.stack([hxy * gx - hxx * gy, hxy * gy - hyy * gx]) / determinant
    offset = torch.where(maximum, offset.clamp(-1, 1), 0)
    height = middle + (gy * offset[0] + gx * offset[1]) / 2
    highest = torch.stack([north, south, west, east, *corners]).amax(dim=0)
    return offset, torch.where(middle >= highest, height, -torch.inf)


_SIGMA = 2  # cells, of the Gaussian
_TINY = 1e-10  # smaller probabilities count as this


def _taylor_maximum(maps: Tensor, surface: Tensor, margin: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Expands a surface around its largest cell within the maps (R, K, H, W).

    Args:
        surface: (R, K, H + 2 margin, W + 2 margin), of which the maps' cells are the middle.
        margin: 0 leaves a largest cell at the border where it is, 1 does not.

    Returns:
        Place of the maximum in cells (R, K, 2), y before x; the logit in maps of the cell it refines (R, K); the
        height of the expansion there (R, K).
    """
    H, W = maps.shape[2:]
    inner = surface[..., margin : margin + H, margin : margin + W]
    index = inner.flatten(2).argmax(dim=2, keepdim=True)
    cell = torch.stack([index // W, index % W])
    last = _vector((H - 1, W - 1), cell).view(2, 1, 1, 1)
    along = ((cell > -margin) & (cell < last + margin)).all(dim=0).expand(2, -1, -1, -1)
    around = (cell[0] + margin) * surface.shape[3] + cell[1] + margin
    offset, height = _parabola(surface, around, along)
    place = (cell + offset).clamp(min=-0.5).minimum(last + 0.5)[..., 0].permute(1, 2, 0)
    return place, maps.flatten(2).gather(2, index)[..., 0], height[..., 0]


def _smoothed_log_probability(maps: Tensor) -> Tensor:
    R, K, H, W = maps.shape
    reach = 3 * _SIGMA
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.softmax(-(steps**2) / (2 * _SIGMA**2), dim=0)
    probability = maps.flatten(2).softmax(dim=2).view(R * K, 1, H, W)
    probability = F.conv2d(probability, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    probability = F.conv2d(probability, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return probability.view(R, K, H, W).clamp(min=_TINY).log()


def _expected_similarity(maps: Tensor, area: Tensor, length: Tensor, sigmas: Tensor) -> Tensor:
    """Expected object keypoint similarity of each cell, and of one more on every side, to a keypoint drawn from
    the softmax: (R, K, H + 2, W + 2).

    COCO's similarity is a Gaussian of the distance, exp(-d^2 / (2 area (2 sigma)^2)): a product over the axes, so
    that the expectation is a matrix product per axis.
    """
    variance = area[:, None] * (2 * sigmas) ** 2  # (R, K), pixels squared
    kernels = []
    for axis, cells in enumerate(maps.shape[2:]):
        steps = torch.arange(-1, cells + 1, dtype=maps.dtype, device=maps.device)
        cell = length[:, axis, None, None] / cells  # pixels
        squared = ((steps[:, None] - steps[1:-1]) * cell) ** 2
        kernels.append(torch.exp(-squared[:, None] / (2 * variance[..., None, None])))
    probability = maps.flatten(2).softmax(dim=2).view_as(maps)
    return kernels[0] @ probability @ kernels[1].mT
