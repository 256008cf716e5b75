"""Convolutions that train faster: what they compute is the original's, forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.pointwise import PreparedPointwise, conv1x1
from ..ops.winograd import PreparedConv3x3, conv3x3
from .conv_classes import activation_after, is_known_conv, is_relu
from .cpu_features import bf16_kernels_are_available, float32_kernels_are_available
from .fused_module import FusedModule, PreparedWeights, replace_child
from .kernel_support import doubling_as_linear, is_doubling, supports_pointwise, supports_winograd
from .norms import folded, is_affine

__all__ = [
    "MatrixConvTranspose2d",
    "PointwiseConv2d",
    "TrainedConv2d",
    "WinogradConv2d",
    "as_autocast",
    "train_as_matrix_products",
    "train_pointwise",
    "train_with_winograd",
    "trains_pointwise",
]


def train_with_winograd(model: nn.Module, arithmetic: str) -> int:
    """Lets the 3x3 convolutions of a model train as `WinogradConv2d`; returns how many.

    Args:
        arithmetic: as of `WinogradConv2d`.
    """
    return _replace(
        model,
        lambda module: is_known_conv(module) and supports_winograd(module),
        lambda module: WinogradConv2d(module, arithmetic),
    )


def train_pointwise(model: nn.Module) -> int:
    """Lets the 1x1 convolutions of a model train as `PointwiseConv2d`, where that is compiled; returns how many."""
    if not float32_kernels_are_available():
        return 0
    return _replace(
        model, lambda module: is_known_conv(module) and supports_pointwise(module), PointwiseConv2d
    )


def train_as_matrix_products(model: nn.Module) -> int:
    """Lets the transposed convolutions of a model that double their maps train as `MatrixConvTranspose2d`; returns how
    many."""
    return _replace(model, is_doubling, MatrixConvTranspose2d)


def _replace(model, serves, make):
    replaced = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FusedModule) and serves(child):
                replaced.setdefault(child, make(child))
                replace_child(parent, name, replaced[child])
    return len(replaced)


class TrainedConv2d(FusedModule, nn.Conv2d):
    """A convolution with its normalisation and activation, in training and in evaluation mode.

    A normalisation that is an affine map of each channel, as a frozen one is, becomes part of the weight, a ReLU and an
    addition part of the convolution, forward and backward. A subclass defines ``serves`` and ``convolve``.

    Args:
        original: whose forward is a convolution of ``nn.Conv2d``, then its ``norm`` if it has one, then an activation.
    """

    def __init__(self, original: nn.Conv2d):
        super().__init__(original)
        self.prepared = PreparedWeights()
        self.activation_after = activation_after(original)

    def serves(self, x: Tensor) -> bool:
        """Whether `convolve` takes x, (N, C, H, W), which is in the dtype of autocast already."""
        raise NotImplementedError

    def convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: Tensor | None,
        relu: bool,
        sources: tuple[Tensor | None, ...],
        prepare: Callable[[], Tensor],
    ) -> Tensor:
        """The convolution, plus ``add``, then a ReLU if asked for.

        Args:
            sources: of what ``weight`` is made.
            prepare: makes it of them again, without autograd.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run(self, x: Tensor, relu: bool = False, add: Tensor | None = None) -> Tensor:
        """The forward, plus ``add``, (N, O, H', W'), then a ReLU if asked for; ``add`` only for a layer without an
        activation."""
        norm, activation = self._modules.get("norm"), self.activation_after
        x = as_autocast(x)
        if not self.serves(x):
            return _finish(self._rest(self.original._conv_forward(x, self.weight, self.bias)), relu, add)
        if not is_affine(norm):
            x = self._convolve(x, self.weight, self.bias, None, False, (self.weight,), self.weight.detach)
            return _finish(self._rest(x), relu, add)
        fuses = activation is None or is_relu(activation)

        def prepare():
            return folded(self.weight.detach(), None, norm)[0]

        sources = (self.weight,) if norm is None else (self.weight, norm.weight, norm.running_var)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = folded(self.weight, self.bias, norm)
        add = None if add is None else as_autocast(add).to(x.dtype)
        x = self._convolve(x, weight, bias, add, relu or (fuses and activation is not None), sources, prepare)
        return x if fuses or activation is None else activation(x)

    def _convolve(self, x, *args):
        with torch.autocast(x.device.type, enabled=False):
            return self.convolve(x, *args)

    def _rest(self, x):
        norm = self._modules.get("norm")
        x = x if norm is None else norm(x)
        return x if self.activation_after is None else self.activation_after(x)


class WinogradConv2d(TrainedConv2d):
    """A convolution of 3x3; it is `mrcnn_ext.ops.winograd.conv3x3`.

    Args:
        original: for which `supports_winograd` holds.
        arithmetic: "int16" or "float32"; "auto" int16 under bf16 autocast, float32 without; "float32 alone" the
            same, but under autocast PyTorch's convolutions.
    """

    def __init__(self, original: nn.Conv2d, arithmetic: str):
        super().__init__(original)
        self.arithmetic = arithmetic

    def serves(self, x: Tensor) -> bool:
        if self.arithmetic == "float32 alone" and torch.is_autocast_enabled("cpu"):
            return False
        return x.device.type == "cpu" and x.dim() == 4 and x.dtype in (torch.float32, torch.bfloat16)

    def convolve(self, x, weight, bias, add, relu, sources, prepare):
        int16 = self.multiplies_int16(x)
        prepared = self.prepared.get(sources, int16, lambda: PreparedConv3x3(prepare(), int16))
        return conv3x3(x, weight, bias, int16, add, relu, prepared)

    def multiplies_int16(self, x: Tensor) -> bool:
        """Whether to, for x in the dtype of autocast, which need not be on any more."""
        lower = x.dtype == torch.bfloat16 and self.weight.dtype != torch.bfloat16
        return self.arithmetic == "int16" or (self.arithmetic == "auto" and lower)

    def prepared_for(self, int16: bool) -> PreparedConv3x3:
        """Of the weight, without a normalisation."""
        return self.prepared.get((self.weight,), int16, lambda: PreparedConv3x3(self.weight, int16))

    def extra_repr(self) -> str:
        return f"{self.original.extra_repr()}; winograd_conv3x3, {self.arithmetic}"


class PointwiseConv2d(TrainedConv2d):
    """A convolution of 1x1; it is `mrcnn_ext.ops.pointwise.conv1x1` where the processor has the instructions.

    Args:
        original: for which `supports_pointwise` holds.
    """

    def serves(self, x: Tensor) -> bool:
        return x.dim() == 4 and trains_pointwise(x, self.weight)

    def serves_dtype(self, x: Tensor) -> bool:
        """Whether `pointwise_conv` takes x, in the dtype of autocast; of gradients only its own are asked for."""
        return trains_pointwise(x, self.weight, of_input=False)

    def convolve(self, x, weight, bias, add, relu, sources, prepare):
        prepared = self.prepared.get(sources, x.dtype, lambda: PreparedPointwise(prepare(), x.dtype))
        return conv1x1(x, weight, bias, add, self.stride[0], relu, prepared)

    def extra_repr(self) -> str:
        return f"{self.original.extra_repr()}; pointwise_conv"


class MatrixConvTranspose2d(FusedModule, nn.ConvTranspose2d):
    """A transposed convolution that doubles its maps, as a linear layer, whose backward is several times faster; in
    training and in evaluation mode.

    Args:
        original: for which `is_doubling` holds.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            return self.original.forward(x, output_size)
        weight, bias = doubling_as_linear(self.weight, self.bias)
        count, _, height, width = x.shape
        x = F.linear(x.permute(0, 2, 3, 1), weight, bias).view(count, height, width, 2, 2, self.out_channels)
        x = x.transpose(2, 3).reshape(count, 2 * height, 2 * width, self.out_channels)
        return x.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"{self.original.extra_repr()}; as a linear layer"


def trains_pointwise(x: Tensor, weight: Tensor, of_input: bool = True) -> bool:
    """Whether `conv1x1` takes x, (N, C, H, W) in the dtype of autocast.

    Args:
        weight: (O, C, ...) of the layer.
        of_input: whether it is to give the gradient of x, of as many input channels as there are outputs.
    """
    if x.device.type != "cpu" or x.numel() == 0:
        return False
    if x.dtype == torch.bfloat16:
        even = weight.shape[1] % 2 == 0 and not (of_input and weight.shape[0] % 2)
        return even and bf16_kernels_are_available()
    return x.dtype == weight.dtype == torch.float32 and float32_kernels_are_available()


def as_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast gives a convolution."""
    if torch.is_autocast_enabled(x.device.type) and x.is_floating_point():
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x


def _finish(x, relu, add):
    x = x if add is None else x + add
    return x.relu() if relu else x
