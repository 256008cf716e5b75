"""UniPose's waterfall of atrous convolutions, its decoder, and both as one network."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv import ConvNormReLU, msra_fill

__all__ = ["UniPoseNetwork", "WaterfallASP", "WaterfallDecoder"]


class WaterfallASP(nn.Module):
    """Waterfall atrous spatial pooling (Artacho and Savakis, *UniPose: Unified Human Pose Estimation in Single
    Images and Videos*, CVPR 2020, section 3.2): each atrous convolution takes the output of the one before it;
    all outputs and the mean over the map are concatenated and brought to the output's channels.

    (N, channels, H, W) -> (N, out_channels, H, W).

    Args:
        channels: of the input.
        rates: dilation of each convolution in cells. UniPose's 6, 12, 18, 24 are for maps of 40 cells and more;
            of a RoI of 14 cells a rate above 6 would see little but padding.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
        out_channels: of every convolution and of the output, 256 in UniPose; None for those of the input.

    Raises:
        ValueError: ``rates`` is empty or has one below 1.
    """

    def __init__(
        self,
        channels: int,
        rates: Sequence[int],
        norm: Callable[[int], nn.Module] | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        if len(rates) == 0 or min(rates) < 1:
            raise ValueError(f"rates must be one or more dilations of at least 1, got {list(rates)}")
        dim = out_channels or channels
        self.branches = nn.ModuleList(
            [
                ConvNormReLU(channels if index == 0 else dim, dim, norm, rate)
                for index, rate in enumerate(rates)
            ]
        )
        # Without normalisation: the mean is one value per channel and map.
        self.mean = nn.Conv2d(channels, dim, kernel_size=1)
        self.fuse = nn.Conv2d((len(rates) + 1) * dim, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x.mean(dim=(2, 3), keepdim=True)).relu()
        outputs = []
        for branch in self.branches:
            x = branch(x)
            outputs.append(x)
        outputs.append(mean.to(x.dtype).expand(-1, -1, x.shape[2], x.shape[3]))
        return self.fuse(torch.cat(outputs, dim=1)).relu()


class WaterfallDecoder(nn.Module):
    """UniPose's decoder (section 3.3): the waterfall's features, upsampled to a finer map of the backbone and
    concatenated with it, through 3x3 convolutions to one heatmap per keypoint.

    (N, channels, H, W) and (N, low_channels, H_low, W_low) -> (N, num_keypoints, H_low, W_low) logits.

    Args:
        channels: of the waterfall's features.
        low_channels: of the backbone's finer map.
        num_keypoints: K.
        low_dim: channels that the finer map is reduced to by a 1x1 convolution, so that it does not outweigh the
            waterfall's; 48 in UniPose.
        conv_dims: output channels of each 3x3 convolution; UniPose's are twice 256.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
    """

    def __init__(
        self,
        channels: int,
        low_channels: int,
        num_keypoints: int,
        low_dim: int = 48,
        conv_dims: Sequence[int] = (256, 256),
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.low = nn.Conv2d(low_channels, low_dim, kernel_size=1, bias=norm is None)
        self.low_norm = None if norm is None else norm(low_dim)
        self.convs = nn.Sequential()
        dim = channels + low_dim
        for out_channels in conv_dims:
            self.convs.append(ConvNormReLU(dim, out_channels, norm))
            dim = out_channels
        self.score = nn.Conv2d(dim, num_keypoints, kernel_size=1)

    def forward(self, x: Tensor, low: Tensor) -> Tensor:
        low = self.low(low)
        if self.low_norm is not None:
            low = self.low_norm(low)
        low = low.relu()
        x = F.interpolate(x, size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.score(self.convs(torch.cat([x, low.to(x.dtype)], dim=1)))


class UniPoseNetwork(nn.Module):
    """What UniPose has behind its backbone: `WaterfallASP` on the coarse map, `WaterfallDecoder` with the fine one.

    (N, low_channels, H_low, W_low) and (N, channels, H, W) -> (N, num_keypoints, H_low, W_low) logits.

    Args:
        low_channels, channels: of the backbone's fine and coarse map, those of stride 4 and 8 in UniPose.
        num_keypoints: heatmaps per person, K.
        rates: dilations of the waterfall.
        dim: channels of the waterfall and of the decoder's convolutions; 256 in UniPose.
        low_dim: channels of the fine map in the decoder.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
    """

    def __init__(
        self,
        low_channels: int,
        channels: int,
        num_keypoints: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        dim: int = 256,
        low_dim: int = 48,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.waterfall = WaterfallASP(channels, rates, norm, dim)
        self.decoder = WaterfallDecoder(dim, low_channels, num_keypoints, low_dim, (dim, dim), norm)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                msra_fill(layer)
        # Close to zero, so that at first a keypoint may be anywhere.
        nn.init.normal_(self.decoder.score.weight, std=0.001)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return self.decoder(self.waterfall(high), low)
