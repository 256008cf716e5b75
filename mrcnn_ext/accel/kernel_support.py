"""Which layers the kernels of `mrcnn_ext.ops` can compute."""

from torch import Tensor, nn

from .fused_module import FusedModule, defines

__all__ = [
    "doubling_as_linear",
    "is_doubling",
    "supports_pointwise",
    "supports_dilated_winograd",
    "supports_stem",
    "supports_winograd",
    "winograd_tiles",
]


def supports_winograd(conv: nn.Conv2d) -> bool:
    """Whether Winograd's algorithm can compute a convolution: 3x3, stride 1, channels in sixteens."""
    return conv.dilation == (1, 1) and supports_dilated_winograd(conv)


def supports_dilated_winograd(conv: nn.Conv2d) -> bool:
    """The same of one whose taps may be some cells apart: it convolves each of as many grids by themselves."""
    return (
        (conv.kernel_size, conv.stride, conv.groups) == ((3, 3), (1, 1), 1)
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding in (conv.dilation, "same")
        and conv.padding_mode == "zeros"
        and conv.in_channels % 16 == conv.out_channels % 16 == 0
    )


def winograd_tiles(height: int, width: int, dilation: int) -> int:
    """Tiles of 4x4 outputs by which a map is convolved."""
    rows, columns = (-(-side // dilation) for side in (height, width))
    return dilation**2 * -(-rows // 4) * -(-columns // 4)


def supports_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is a product of a matrix with each cell: 1x1."""
    return (
        (conv.kernel_size, conv.groups) == ((1, 1), 1)
        and conv.stride[0] == conv.stride[1]
        and conv.padding in ((0, 0), "valid", "same")
    )


def supports_stem(conv: nn.Conv2d) -> bool:
    """Whether a convolution is that of a ResNet's stem: 7x7, stride 2, of three channels, outputs in 64s."""
    geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return (
        geometry == ((7, 7), (2, 2), (3, 3), (1, 1), 1)
        and conv.padding_mode == "zeros"
        and conv.in_channels == 3
        and conv.out_channels % 64 == 0
    )


def is_doubling(layer: nn.Module) -> bool:
    """Whether a layer is a transposed convolution of 2x2 and stride 2, each output of which has one input."""
    return (
        defines(layer.original if isinstance(layer, FusedModule) else layer, nn.ConvTranspose2d, "forward")
        and (layer.kernel_size, layer.stride, layer.padding) == ((2, 2), (2, 2), (0, 0))
        and (layer.output_padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)
    )


def doubling_as_linear(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The parameters of such a layer, (C, O, 2, 2) and (O,), as those of a linear one that gives the 2 x 2 cells of
    each: (2 2 O, C) and (2 2 O,)."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2), None if bias is None else bias.repeat(4)
