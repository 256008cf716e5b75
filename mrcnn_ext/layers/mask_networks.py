"""The mask branch of Mask R-CNN as a plain network."""

from collections.abc import Callable, Sequence

from torch import nn

from .conv import ConvNormReLU, msra_fill

__all__ = ["FCNMaskNetwork"]


class FCNMaskNetwork(nn.Sequential):
    """The fully convolutional mask branch (Mask R-CNN, figure 4): 3x3 convolutions, a 2x2 transposed
    convolution with stride 2, a 1x1 convolution to one map of logits per class.

    (R, in_channels, H, W) pooled features -> (R, num_classes, 2 H up_scale, 2 W up_scale) logits.

    Shapes and initialisation are the paper's; the parameters are called ``mask_fcn1..``, ``deconv`` and
    ``predictor`` as in detectron2, whose checkpoints load as they are.

    Args:
        in_channels: channels of the pooled features.
        num_classes: masks per RoI, K; 1 for class-agnostic masks.
        conv_dims: output channels of each 3x3 convolution and, last, of the transposed convolution. The
            paper's FPN head is five times 256, its C4 head one 256.
        norm: makes the normalisation layer of a 3x3 convolution from its channel count; None for none.
        up_scale: further bilinear upsampling of the logits; 1 for none, which is the paper's.

    Raises:
        ValueError: if ``conv_dims`` is empty.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        conv_dims: Sequence[int] = (256, 256, 256, 256, 256),
        norm: Callable[[int], nn.Module] | None = None,
        up_scale: float = 1.0,
    ):
        super().__init__()
        if len(conv_dims) == 0:
            raise ValueError("conv_dims is empty: its last entry is the width of the transposed convolution")
        for index, dim in enumerate(conv_dims[:-1], start=1):
            self.add_module(f"mask_fcn{index}", ConvNormReLU(in_channels, dim, norm))
            in_channels = dim
        self.deconv = nn.ConvTranspose2d(in_channels, conv_dims[-1], kernel_size=2, stride=2)
        self.deconv_relu = nn.ReLU()
        self.predictor = nn.Conv2d(conv_dims[-1], num_classes, kernel_size=1)
        if up_scale != 1:
            self.upsample = nn.Upsample(scale_factor=float(up_scale), mode="bilinear", align_corners=False)
        # All layers first, then their weights: a seed gives the weights that it gives detectron2's head.
        for layer in self.children():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer is not self.predictor:
                msra_fill(layer)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.predictor.bias)
