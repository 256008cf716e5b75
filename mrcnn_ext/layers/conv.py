"""The convolution block that the head networks are made of."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["ConvNormReLU", "msra_fill"]


def msra_fill(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    """Fills the weight as Caffe2's MSRAFill does (He et al. 2015, by fan out), the bias with zeros."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ConvNormReLU(nn.Conv2d):
    """A 3x3 convolution, then a normalisation if one is given, then a ReLU.

    The normalisation is a child called ``norm`` of the convolution itself and the bias is dropped with it:
    the parameter names of detectron2's Conv2d, so that its checkpoints load as they are.

    Args:
        in_channels, out_channels: channels of the input and of the output.
        norm: makes the normalisation layer from a channel count; None for none.
        dilation: cells between the taps of the kernel; the output keeps the input's size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Callable[[int], nn.Module] | None = None,
        dilation: int = 1,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation, bias=norm is None
        )
        self.norm = None if norm is None else norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        x = self._conv_forward(x, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x.relu_()
