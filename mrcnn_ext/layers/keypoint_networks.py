"""The keypoint branch of Mask R-CNN as a plain network."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .conv import ConvNormReLU, msra_fill

__all__ = ["HeatmapKeypointNetwork"]


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
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        conv_dims: Sequence[int] = (512,) * 8,
        norm: Callable[[int], nn.Module] | None = None,
        up_scale: float = 2.0,
    ):
        super().__init__()
        for index, dim in enumerate(conv_dims, start=1):
            self.add_module(f"conv_fcn{index}", ConvNormReLU(in_channels, dim, norm))
            in_channels = dim
        self.score_lowres = nn.ConvTranspose2d(in_channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        if up_scale != 1:
            self.upsample = nn.Upsample(scale_factor=float(up_scale), mode="bilinear", align_corners=False)
        # All layers first, then their weights: a seed gives the weights that it gives detectron2's head.
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                msra_fill(layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        # Heatmaps are read one by one, whatever layout the convolutions preferred.
        return x.contiguous()
