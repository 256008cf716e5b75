"""Keypoint branches that carry a state from one frame of a video to the next, as plain networks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .conv import ConvNormReLU, msra_fill
from .waterfall import WaterfallASP

__all__ = ["ConvLSTMCell", "ConvLSTMKeypointNetwork", "UniPoseLSTMNetwork"]


class ConvLSTMCell(nn.Module):
    """A long short-term memory whose gates are convolutions (Shi et al., *Convolutional LSTM Network*, NeurIPS 2015,
    equation 3, without the peepholes).

    The state is computed in the dtype it is given in, under autocast too: rounding would add up over the frames.

    Args:
        in_channels: of the input.
        hidden_channels: of the hidden and of the cell state.
        kernel_size: odd; how far the state may move from one frame to the next.
    """

    def __init__(self, in_channels: int, hidden_channels: int, kernel_size: int = 3):
        super().__init__()
        self.hidden_channels = hidden_channels
        self.gates = nn.Conv2d(
            in_channels + hidden_channels, 4 * hidden_channels, kernel_size, padding=kernel_size // 2
        )
        nn.init.xavier_uniform_(self.gates.weight)
        bias = torch.zeros(4 * hidden_channels)
        bias[hidden_channels : 2 * hidden_channels] = (
            1.0  # at first it remembers (Jozefowicz et al., ICML 2015)
        )
        self.gates.bias = nn.Parameter(bias)

    def forward(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, H, W) and two states (N, hidden_channels, H, W) -> the two states after it."""
        gates = self.gates(torch.cat([x, hidden.to(x.dtype)], dim=1)).to(cell.dtype)
        take, keep, give, new = gates.chunk(4, dim=1)
        cell = keep.sigmoid() * cell + take.sigmoid() * new.tanh()
        return give.sigmoid() * cell.tanh(), cell


class _TemporalKeypointNetwork(nn.Module):
    """What both have in common: `HeatmapKeypointNetwork` (its layers and their names), and between its convolutions
    and its transposed convolution what the state adds.

    A subclass has ``step``, from (R, D, H, W) features of a frame and the state to heatmap logits and the next state.

    Attributes:
        state_names, state_channels: of each tensor of the state.
        state_scales: its height and width over those of the features.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        conv_dims: Sequence[int] = (512,) * 8,
        norm: Callable[[int], nn.Module] | None = None,
        hidden_channels: int = 128,
        up_scale: float = 2.0,
        wasp_rates: Sequence[int] = (),
        num_convs: int = 2,
    ):
        super().__init__()
        self.convs, channels = nn.Sequential(), in_channels
        for index, dim in enumerate(conv_dims, start=1):
            self.convs.add_module(f"conv_fcn{index}", ConvNormReLU(channels, dim, norm))
            channels = dim
        self.wasp = WaterfallASP(channels, wasp_rates, norm) if len(wasp_rates) else nn.Identity()
        self.score_lowres = nn.ConvTranspose2d(channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        self.upsample = (
            nn.Upsample(scale_factor=float(up_scale), mode="bilinear", align_corners=False)
            if up_scale != 1
            else nn.Identity()
        )
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                msra_fill(layer)
        self.feature_channels = channels
        self.state_names = ["hidden", "cell", "last_heatmaps"]
        self.state_channels = [hidden_channels, hidden_channels, num_keypoints]
        self.state_scales = [1, 1, 2]
        self.lstm = ConvLSTMCell(channels + 4 * num_keypoints, hidden_channels)
        self.after = nn.Sequential()
        for _ in range(num_convs):
            conv = ConvNormReLU(hidden_channels, hidden_channels, norm)
            msra_fill(conv)
            self.after.append(conv)
        self.merge = nn.Conv2d(hidden_channels, channels, kernel_size=1)
        _zero(self.merge)

    def features(self, x: Tensor) -> Tensor:
        """The part without a state, of any number of frames at once: (R, in_channels, H, W) -> (R, D, H, W)."""
        return self.wasp(self.convs(x))

    def step(self, features: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The part with a state: (R, D, H, W) of one frame -> heatmaps and the state, as `forward`."""
        last = _fours(state[2], features).to(features.dtype)
        hidden, cell = self.lstm(torch.cat([features, last], dim=1), state[0], state[1])
        x = self.merge(self.after(hidden.to(features.dtype)))
        scores = self.score_lowres((x + features).relu())
        return self.upsample(scores).contiguous(), [hidden, cell, _root_of_probability(scores.to(cell.dtype))]

    def initial_state(self, features: Tensor) -> list[Tensor]:
        """The state before the first frame, zero and in float32 or wider: each (R, its channels, its scale * H,
        its scale * W).

        Args:
            features: (R, D, H, W), of the first frame.
        """
        R, _, H, W = features.shape
        dtype = torch.promote_types(features.dtype, torch.float32)
        zeros = []
        for k, channels in enumerate(self.state_channels):
            scale = self.state_scales[k]
            size = (R, channels, scale * H, scale * W)
            zeros.append(torch.zeros(size, dtype=dtype, device=features.device))
        return zeros

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """One frame of each of R tracks.

        Args:
            x: (R, in_channels, H, W) pooled features.
            state: what the frame before gave; None for tracks that begin here.

        Returns:
            (R, K, 2 H up_scale, 2 W up_scale) heatmap logits, and the state after the frame.
        """
        features = self.features(x)
        return self.step(features, self.initial_state(features) if state is None else state)


class ConvLSTMKeypointNetwork(_TemporalKeypointNetwork):
    """The keypoint branch of Mask R-CNN with a convolutional LSTM before its heatmaps, which takes the features of a
    frame and the heatmaps of the frame before, and carries features from frame to frame, as LSTM Pose Machines do (Luo
    et al., CVPR 2018, section 3.2; there between stages of a convolutional pose machine of the whole image, here for
    each RoI).

    The state is a list of ``hidden`` and ``cell``, both (R, hidden_channels, H, W), and ``last_heatmaps``
    (R, K, 2 H, 2 W): the square root of the softmax of each heatmap of the last frame, before it is upsampled, or 0
    before the first. What follows the LSTM is added to the features and starts as zero: with the weights of
    `HeatmapKeypointNetwork`, whose layers have the same names here, it begins as that network.

    Args:
        in_channels: channels of the pooled features.
        num_keypoints: heatmaps per RoI, K.
        conv_dims: output channels of each 3x3 convolution before the LSTM.
        norm: makes the normalisation layer of a convolution from its channel count; None for none.
        hidden_channels: of the LSTM. Its cost is that of a 3x3 convolution from D + 4 K + hidden_channels to
            4 hidden_channels.
        up_scale: bilinear upsampling of the heatmaps after the transposed convolution.
        wasp_rates: dilations of a `WaterfallASP` after the convolutions; empty for none.
        num_convs: 3x3 convolutions of ``hidden_channels`` after the LSTM.
    """


class UniPoseLSTMNetwork(_TemporalKeypointNetwork):
    """UniPose-LSTM (Artacho and Savakis, CVPR 2020, section 3.4) over RoI features: the LSTM takes the features of a
    waterfall of atrous convolutions and the heatmaps of the frame before, and convolutions follow it.

    The state is that of `ConvLSTMKeypointNetwork`, and what follows the LSTM is added to the features as there.

    Args:
        in_channels, num_keypoints, conv_dims, norm: as `ConvLSTMKeypointNetwork`'s.
        wasp_rates: dilations of the waterfall.
        kwargs: the others of `ConvLSTMKeypointNetwork`.
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        conv_dims: Sequence[int] = (512,) * 4,
        norm: Callable[[int], nn.Module] | None = None,
        *,
        wasp_rates: Sequence[int] = (1, 2, 4, 6),
        **kwargs,
    ):
        super().__init__(in_channels, num_keypoints, conv_dims, norm, wasp_rates=wasp_rates, **kwargs)


def _fours(maps: Tensor, features: Tensor) -> Tensor:
    """(R, K, 2 H, 2 W) -> (R, 4 K, H, W): the four cells of a heatmap over each cell of the features (R, D, H, W) as
    channels, by which a place loses no precision. PyTorch's pixel_unshuffle gives a wrong shape where R is 0."""
    R, _, H, W = features.shape
    K = maps.shape[1]
    return maps.reshape(R, K, H, 2, W, 2).permute(0, 1, 3, 5, 2, 4).reshape(R, 4 * K, H, W)


def _root_of_probability(scores: Tensor) -> Tensor:
    """(R, K, 2 H, 2 W) logits -> the square root of the softmax over each map. It tells sure heatmaps from unsure ones,
    and its values are of the size of features, which those of the softmax are far below."""
    return scores.flatten(2).softmax(dim=2).clamp(min=1e-6).sqrt().view_as(scores)


def _zero(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
