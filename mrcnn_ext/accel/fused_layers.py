"""Convolutions and linear layers with what surrounds them made part of them, at inference only.

Batch normalisation is folded into a copy of the weight, ReLU and the addition of a second input happen as the
result is written. A NaN stays one through a ReLU, as in PyTorch's; int8 has none. The parameters themselves are left
alone: the copy is made anew when they have changed.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.int8_pointwise import add_int8_pointwise_conv_, int8_pointwise_conv, int8_weight
from ..ops.pointwise import add_pointwise_conv_, pointwise_conv, pointwise_weight
from ..ops.stem import stem_conv_pool, stem_weight
from ..ops.winograd import winograd_conv3x3, winograd_int8_weight, winograd_weight
from .fused_module import FusedModule, PreparedWeights
from .int8_ranges import Int8Range, Observer, WinogradObserver
from .kernel_support import doubling_as_linear, is_doubling, winograd_tiles
from .mixed_precision import to_float32
from .norms import foldable, folded
from .policy import ConvKernel, KernelPolicy

__all__ = ["FusedConv2d", "FusedConvTranspose2d", "FusedLinear"]

_WINOGRAD = (ConvKernel.WINOGRAD_INT16, ConvKernel.WINOGRAD_FLOAT32)


class _FusedLayer(FusedModule):
    def __init__(self, original: nn.Module, policy: KernelPolicy):
        super().__init__(original)
        self.policy = policy
        self.prepared = PreparedWeights()
        self.fuses: tuple[str, ...] = ()  # what a caller of `run` makes part of this layer, for `print`
        # How the input is quantised where `pointwise_conv` would compute it.
        self.int8: Int8Range | None = None
        self.observer: Observer | None = None  # of what `pointwise_conv` is given
        # Whether Winograd's algorithm multiplies int8 where it computes the layer, which finds ranges by itself.
        self.int8_winograd = False
        self.winograd_observer: WinogradObserver | None = None

    def infer(self, x: Tensor) -> Tensor:
        return self.run(x)

    def _describe(self, kernel: str) -> str:
        parts = [self.original.extra_repr(), *self.fuses]
        dtype = str(self.policy.dtype).removeprefix("torch.")
        if self.int8 is not None and kernel == "pointwise_conv":
            dtype, kernel = "int8", "int8_pointwise_conv"
        if self.int8_winograd and kernel.startswith("winograd_conv3x3"):
            dtype, kernel = "int8", "winograd_conv3x3, int8"
        return f"{', '.join(part for part in parts if part)}; {dtype} by {kernel}"


class FusedConv2d(_FusedLayer, nn.Conv2d):
    """A ``nn.Conv2d`` as a kernel of `KernelPolicy` computes it.

    ``forward`` is what the original's is, its own normalisation (a child ``norm``) and ReLU included; `run` adds what
    follows in the network.

    Args:
        original: whose forward is a convolution of ``nn.Conv2d``, then its ``norm`` if it has one, then a ReLU if
            ``relu``.
        policy: what to compute with.
        relu: whether the original ends with a ReLU.
    """

    def __init__(self, original: nn.Conv2d, policy: KernelPolicy, relu: bool = False):
        super().__init__(original, policy)
        self.relu = relu

    @property
    def own_norm(self) -> nn.Module | None:
        return self._modules.get("norm")

    def run(
        self,
        x: Tensor,
        relu: bool = False,
        add: Tensor | None = None,
        add_doubled: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> Tensor:
        """The convolution of x, its normalisation, plus ``add``, then a ReLU if the layer has one or it is asked for.

        Args:
            x: (N, C, H, W) floating point.
            relu: whether a ReLU follows.
            add: (N, O, H', W') in the dtype of the policy, overwritten by the result.
            add_doubled: instead of ``add``, half as high and wide, brought to twice its size first, each cell four
                times.
            norm: a foldable normalisation that follows a layer without one of its own.

        Returns:
            (N, O, H', W') in the dtype of the policy.
        """
        policy, relu = self.policy, relu or self.relu
        norm = self.own_norm if norm is None else norm
        folds = foldable(norm)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(policy.dtype)
            kernel = policy.conv_kernel(self, folds, x.device)
            if kernel is ConvKernel.POINTWISE:
                return self._pointwise(x, norm, relu, add, add_doubled)
            if add_doubled is not None:
                add = F.interpolate(add_doubled, scale_factor=2.0, mode="nearest")
            if folds:
                return self._convolve(kernel, x, norm, relu, add)
            assert norm is not None  # foldable(None) is True
            x = norm(to_float32(self._convolve(kernel, x, None))).to(policy.dtype)
            return _finish(x, relu, add)

    def output_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Of `run`."""
        sides = zip(x.shape[2:], self.kernel_size, self.stride, self.dilation, self._paddings(), strict=True)
        height, width = (
            (side + padding - dilation * (kernel - 1) - 1) // stride + 1
            for side, kernel, stride, dilation, padding in sides
        )
        return x.shape[0], self.out_channels, height, width

    def _paddings(self):
        """Cells added along each axis, on both sides together."""
        if self.padding == "valid":
            return 0, 0
        if self.padding == "same":
            return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return tuple(2 * padding for padding in self.padding)

    @property
    def is_pointwise(self) -> bool:
        """Whether `pointwise_conv` computes it, or `int8_pointwise_conv` with ``int8``."""
        return self._kernel is ConvKernel.POINTWISE

    @property
    def is_winograd(self) -> bool:
        """Whether `winograd_conv3x3` computes it."""
        return self._kernel in _WINOGRAD

    @property
    def _kernel(self):
        return self.policy.conv_kernel(self, foldable(self.own_norm), self.weight.device)

    def runs_as_stem(self, x: Tensor, norm: nn.Module | None = None) -> bool:
        """Whether `run_stem` can have x."""
        norm = self.own_norm if norm is None else norm
        return foldable(norm) and self.policy.runs_stem(self, x.device)

    def run_stem(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """As `run` with a ReLU, followed by max pooling of 3x3, stride 2 and padding 1."""
        norm = self.own_norm if norm is None else norm
        make = partial(self._make_reordered, norm, partial(stem_weight, dtype=self.policy.dtype))
        weight, bias = self.prepared.get(self._sources(norm), "stem", make)
        return stem_conv_pool(x, weight, bias)

    def _pointwise(self, x, norm, relu, add, add_doubled):
        if self.observer is not None:
            self.observer(x.permute(0, 2, 3, 1).flatten(0, 2), *self._fold(norm), relu)
        if self.int8 is not None:
            return self._int8_pointwise(x, norm, relu, add, add_doubled)
        make = partial(self._make_reordered, norm, partial(pointwise_weight, dtype=self.policy.dtype))
        weight, bias = self.prepared.get(self._sources(norm), "pointwise", make)
        if add is None:
            return pointwise_conv(x, weight, bias, add_doubled, self.stride[0], relu)
        add = add.contiguous(memory_format=torch.channels_last)
        return add_pointwise_conv_(add, x, weight, bias, self.stride[0], relu)

    def _int8_pointwise(self, x, norm, relu, add, add_doubled):
        def make():
            return int8_weight(*self._fold(norm), *self.int8)

        weight = self.prepared.get(self._sources(norm), self.int8, make)
        if add is None:
            return int8_pointwise_conv(x, weight, add_doubled, self.stride[0], relu)
        add = add.contiguous(memory_format=torch.channels_last)
        return add_int8_pointwise_conv_(add, x, weight, self.stride[0], relu)

    def _convolve(self, kernel, x, norm, relu=False, add=None):
        if kernel in _WINOGRAD:
            dilation = self.dilation[0]
            # Small maps are grids of few cells each, most of a tile of which would be thrown away.
            if winograd_tiles(*x.shape[2:], dilation) <= 2 * winograd_tiles(*x.shape[2:], 1):
                if self.winograd_observer is not None:
                    results = (self._winograd(kernel, x, norm, relu, None, int8) for int8 in (False, True))
                    self.winograd_observer(*results, relu)
                return self._winograd(kernel, x, norm, relu, add, self.int8_winograd)
            kernel = self.policy.direct_kernel(self)
        weight, bias = self.prepared.get(self._sources(norm), None, partial(self._make, norm))
        if kernel is ConvKernel.CUDNN and relu and x.numel() and torch.backends.cudnn.enabled:
            geometry = (self.stride, self.padding, self.dilation, self.groups)
            x = x.contiguous(memory_format=torch.channels_last)
            if add is None:
                return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
            add = add.contiguous(memory_format=torch.channels_last)
            return torch.cudnn_convolution_add_relu(x, weight, add, 1.0, bias, *geometry)
        # cuDNN fuses none without a ReLU, oneDNN none of an empty batch.
        if kernel in (ConvKernel.ATEN, ConvKernel.CUDNN) or x.numel() == 0:
            x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
            return _finish(x, relu, add)
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        # Not with its ReLU, which makes zeros of NaN.
        if add is None:
            x = torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, "none", [], "")
            return _finish(x, relu)
        add = add.contiguous(memory_format=torch.channels_last)
        x = torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, weight, bias, *geometry, "add", 1.0, None, [], ""
        )
        return _finish(x, relu)

    def _winograd(self, kernel, x, norm, relu, add, int8):
        reorder = partial(winograd_weight, int16=kernel is ConvKernel.WINOGRAD_INT16)
        make = partial(self._make_reordered, norm, winograd_int8_weight if int8 else reorder)
        weight, bias = self.prepared.get(self._sources(norm), (kernel, int8), make)
        dilation = self.dilation[0]
        if dilation == 1:
            return winograd_conv3x3(x, weight, bias, add, relu)
        x = _from_grids(winograd_conv3x3(_to_grids(x, dilation), weight, bias), dilation, x.shape)
        return _finish(x, relu, add)

    def _sources(self, norm):
        sources = (self.weight, self.bias)
        return (
            sources
            if norm is None
            else (*sources, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )

    def _fold(self, norm):
        return folded(self.weight.detach(), self.bias, norm)

    def _make(self, norm):
        weight, bias = self._fold(norm)
        dtype = self.policy.dtype
        # Not in oneDNN's blocked layouts: which is best depends on the size of the image, and bringing a wrong one
        # into it costs more than the convolution.
        return weight.to(dtype).contiguous(memory_format=torch.channels_last), _to(bias, dtype)

    def _make_reordered(self, norm, reorder):
        weight, bias = self._fold(norm)
        return reorder(weight), _to(bias, torch.float32)

    def extra_repr(self) -> str:
        device = self.weight.device
        if "max_pool" in self.fuses and self.policy.runs_stem(self, device):
            return self._describe("stem_conv_pool")
        return self._describe(self.policy.conv_kernel(self, foldable(self.own_norm), device).value)


class FusedConvTranspose2d(_FusedLayer, nn.ConvTranspose2d):
    """A ``nn.ConvTranspose2d`` in the dtype of a `KernelPolicy`; a ReLU may follow. One that doubles its maps, each
    output from one input, is `pointwise_conv` where the policy has it."""

    def run(self, x: Tensor, relu: bool = False) -> Tensor:
        """(N, C, H, W) -> (N, O, H', W') in the dtype of the policy."""
        if self._runs_pointwise(x.device):
            return self._double(x, relu)

        def make():
            return tuple(_to(value, self.policy.dtype) for value in (self.weight, self.bias))

        weight, bias = self.prepared.get((self.weight, self.bias), None, make)
        assert isinstance(self.padding, tuple)  # no names of paddings for a transposed convolution
        with torch.autocast(x.device.type, enabled=False):
            x = F.conv_transpose2d(
                x.to(weight.dtype),
                weight,
                bias,
                self.stride,
                self.padding,
                self.output_padding,
                self.groups,
                self.dilation,
            )
        return _finish(x, relu)

    @property
    def is_pointwise(self) -> bool:
        """As of `FusedConv2d`."""
        return self._runs_pointwise(self.weight.device)

    def _runs_pointwise(self, device):
        return is_doubling(self) and self.policy.runs_pointwise(self.in_channels, device)

    def _double(self, x, relu):
        with torch.autocast(x.device.type, enabled=False):
            x = self.run_as_linear(x.to(self.policy.dtype), relu)
        count, _, height, width = x.shape
        x = x.permute(0, 2, 3, 1).view(count, height, width, 2, 2, self.out_channels).transpose(2, 3)
        return x.reshape(count, 2 * height, 2 * width, self.out_channels).permute(0, 3, 1, 2)

    def run_as_linear(self, x: Tensor, relu: bool = False) -> Tensor:
        """(N, C, H, W) in the dtype of the policy -> (N, 2 2 O, H, W), the 2 x 2 cells of each; of a layer that
        `pointwise_conv` serves."""
        parameters = (self.weight, self.bias)
        if self.observer is not None:
            rows = x.permute(0, 2, 3, 1).flatten(0, 2)
            self.observer(rows, *doubling_as_linear(self.weight.detach(), self.bias), relu)
        if self.int8 is not None:

            def make_int8():
                return int8_weight(*doubling_as_linear(self.weight.detach(), self.bias), *self.int8)

            return int8_pointwise_conv(x, self.prepared.get(parameters, self.int8, make_int8), relu=relu)

        def make():
            weight, bias = doubling_as_linear(self.weight.detach(), self.bias)
            return matrix_for(weight, bias, self.policy.dtype, pointwise=True)

        weight, bias = self.prepared.get(parameters, "doubling", make)
        return pointwise_conv(x, weight, bias, relu=relu)

    def extra_repr(self) -> str:
        return self._describe("pointwise_conv" if self.is_pointwise else "PyTorch")


class FusedLinear(_FusedLayer, nn.Linear):
    """A ``nn.Linear`` as `pointwise_conv` or PyTorch computes it; a ReLU may follow."""

    def run(self, x: Tensor, relu: bool = False) -> Tensor:
        """(..., C) -> (..., O) in the dtype of the policy."""
        return self._run(x, relu, None, lambda weight: weight)

    @property
    def is_pointwise(self) -> bool:
        """As of `FusedConv2d`."""
        return self.policy.runs_pointwise(self.in_features, self.weight.device)

    def run_on_map(self, x: Tensor, relu: bool = False) -> Tensor:
        """As `run` of ``x.flatten(1)``, which a channels-last (N, C, H, W) map does not have without a copy:
        the columns of the weight are put in the order of the map's memory instead."""
        shape = x.shape[1:]
        rows = x.permute(0, 2, 3, 1).flatten(1)
        return self._run(
            rows, relu, shape, lambda weight: weight.view(-1, *shape).permute(0, 2, 3, 1).flatten(1)
        )

    def _run(self, x, relu, setting, order):
        policy = self.policy
        pointwise = policy.runs_pointwise(self.in_features, x.device)
        int8 = self.int8 if pointwise else None

        def make():
            weight = order(self.weight.detach())
            if int8 is not None:
                return int8_weight(weight, self.bias, *int8)
            return matrix_for(weight, self.bias, policy.dtype, pointwise)

        ready = self.prepared.get((self.weight, self.bias), (setting, pointwise, int8), make)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(policy.dtype)
            if not pointwise:
                return _finish(F.linear(x, *ready), relu)
            rows = x.reshape(-1, self.in_features)
            if self.observer is not None:
                self.observer(rows, order(self.weight.detach()), self.bias, relu)
            maps = rows[:, :, None, None]
            if int8 is not None:
                result = int8_pointwise_conv(maps, ready, relu=relu)
            else:
                result = pointwise_conv(maps, *ready, relu=relu)
            return result.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return self._describe("pointwise_conv" if self.is_pointwise else "PyTorch")


def _to_grids(x: Tensor, step: int) -> Tensor:
    """(N, C, H, W) -> (step step N, C, ceil(H / step), ceil(W / step)), channels-last: every step-th cell of both
    axes, from each of the first step cells on; zeros beyond the map."""
    count, channels, height, width = x.shape
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -width % step, 0, -height % step))
    x = x.view(count, x.shape[1] // step, step, x.shape[2] // step, step, channels).permute(2, 4, 0, 1, 3, 5)
    return x.flatten(0, 2).contiguous().permute(0, 3, 1, 2)


def _from_grids(x: Tensor, step: int, shape: torch.Size) -> Tensor:
    """Back to the (N, C, H, W) of this shape, but for the channels."""
    count, _, height, width = shape
    rows, columns = x.shape[2:]
    x = x.permute(0, 2, 3, 1).view(step, step, count, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)
    x = x.reshape(count, rows * step, columns * step, -1)[:, :height, :width]
    return x.contiguous().permute(0, 3, 1, 2)


def matrix_for(weight: Tensor, bias: Tensor | None, dtype: torch.dtype, pointwise: bool):
    """The weight (O, C) or (O, C, 1, 1) and the bias (O,) of a linear layer as its kernel takes them.

    Args:
        dtype: that the layer computes in.
        pointwise: for `pointwise_conv` rather than for PyTorch.
    """
    if pointwise:
        return pointwise_weight(weight, dtype), _to(bias, torch.float32)
    return weight.to(dtype).contiguous(), _to(bias, dtype)


def _finish(x, relu, add=None):
    x = x if add is None else x.add_(add)
    return x.relu_() if relu else x


def _to(value, dtype):
    return None if value is None else value.detach().to(dtype)
