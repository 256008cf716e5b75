"""The keypoint branches of Mask R-CNN as plain networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .conv import ConvNormReLU, msra_fill
from .waterfall import WaterfallASP

__all__ = ["HeatmapKeypointNetwork", "SimCCKeypointNetwork"]


class HeatmapKeypointNetwork(nn.Sequential):
    """The keypoint branch (Mask R-CNN, section 5): 3x3 convolutions, a 4x4 transposed convolution with stride
    2 to one map per keypoint, bilinear upsampling.

    (R, in_channels, H, W) pooled features -> (R, num_keypoints, 2 H up_scale, 2 W up_scale) logits.

    Shapes and initialisation are detectron2's; the parameters are called ``conv_fcn1..`` and ``score_lowres``
    as there, whose checkpoints load as they are.

    Args:
        in_channels: channels of the pooled features.
        num_keypoints: heatmaps per RoI, K.
        conv_dims: output channels of each 3x3 convolution; the paper's are eight times 512.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
        up_scale: bilinear upsampling of the heatmaps after the transposed convolution; the paper's is 2.
        wasp_rates: dilations of a `WaterfallASP` after the 3x3 convolutions, by which each cell sees the whole
            RoI; empty, the paper's, for none.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        conv_dims: Sequence[int] = (512,) * 8,
        norm: Callable[[int], nn.Module] | None = None,
        up_scale: float = 2.0,
        wasp_rates: Sequence[int] = (),
    ):
        super().__init__()
        channels = _add_convolutions(self, in_channels, conv_dims, norm)
        if len(wasp_rates):
            self.wasp = WaterfallASP(channels, wasp_rates, norm)
        self.score_lowres = nn.ConvTranspose2d(channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        if up_scale != 1:
            self.upsample = nn.Upsample(scale_factor=float(up_scale), mode="bilinear", align_corners=False)
        # All layers first, then their weights: a seed gives the weights that it gives detectron2's head.
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        # Heatmaps are read one by one, whatever layout the convolutions preferred.
        return x.contiguous()


class SimCCKeypointNetwork(nn.Module):
    """Coordinate classification (Li et al., *SimCC: a Simple Coordinate Classification Perspective for Human
    Pose Estimation*, ECCV 2022): 3x3 convolutions, a 1x1 convolution to one map per keypoint, and a linear
    layer per axis from that map to the bins of the axis.

    (R, in_channels, H, W) pooled features -> x logits (R, num_keypoints, split_ratio W) and y logits
    (R, num_keypoints, split_ratio H).

    The linear layers start as interpolated sums of the map over rows and over columns, not at random as the
    paper's, so that where a map lights up counts from the first iteration on.

    Args:
        in_channels: channels of the pooled features.
        num_keypoints: K.
        input_size: (H, W) of the pooled features.
        conv_dims: output channels of each 3x3 convolution.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
        split_ratio: bins per cell of the pooled features.

    Raises:
        ValueError: ``split_ratio`` or a side of ``input_size`` is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        input_size: tuple[int, int],
        conv_dims: Sequence[int] = (512,) * 8,
        norm: Callable[[int], nn.Module] | None = None,
        split_ratio: int = 4,
    ):
        super().__init__()
        height, width = input_size
        if min(height, width, split_ratio) < 1:
            raise ValueError(
                f"input_size and split_ratio must be at least 1, got {(height, width)} and {split_ratio}"
            )
        self.convs = nn.Sequential()
        channels = _add_convolutions(self.convs, in_channels, conv_dims, norm)
        self.score = nn.Conv2d(channels, num_keypoints, kernel_size=1)
        for layer in [*self.convs, self.score]:
            msra_fill(layer)
        self.x_bins = nn.Linear(height * width, split_ratio * width)
        self.y_bins = nn.Linear(height * width, split_ratio * height)
        with torch.no_grad():
            x = _interpolation(width, split_ratio) / height**0.5
            y = _interpolation(height, split_ratio) / width**0.5
            self.x_bins.weight.copy_(x[:, None, :].expand(-1, height, -1).flatten(1))
            self.y_bins.weight.copy_(y[:, :, None].expand(-1, -1, width).flatten(1))
        nn.init.zeros_(self.x_bins.bias)
        nn.init.zeros_(self.y_bins.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.score(self.convs(x)).flatten(2)
        return self.x_bins(maps), self.y_bins(maps)


def _add_convolutions(
    network: nn.Module, channels: int, dims: Sequence[int], norm: Callable[[int], nn.Module] | None
) -> int:
    """Adds ``conv_fcn1``, ...; returns the channels of the last."""
    for index, dim in enumerate(dims, start=1):
        network.add_module(f"conv_fcn{index}", ConvNormReLU(channels, dim, norm))
        channels = dim
    return channels


def _interpolation(cells: int, ratio: int) -> Tensor:
    """(ratio cells, cells): weights that interpolate linearly between cells, at the centre of each bin."""
    bins = (torch.arange(ratio * cells) + 0.5) / ratio - 0.5
    distance = bins.clamp(0, cells - 1)[:, None] - torch.arange(cells)
    return (1 - distance.abs()).clamp(min=0)
