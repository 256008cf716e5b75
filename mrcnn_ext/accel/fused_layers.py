"""Convolutions and linear layers with what surrounds them made part of them, at inference only.

Batch normalisation is folded into a copy of the weight, ReLU and the addition of a second input happen as the
result is written. The parameters themselves are left alone: the copy is made anew when they have changed.
"""

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.pointwise import add_pointwise_conv_, pointwise_conv, pointwise_weight
from ..ops.stem import stem_conv_pool, stem_weight
from ..ops.winograd import winograd_conv3x3, winograd_weight
from .kernel_support import pointwise_serves, stem_serves, winograd_serves

__all__ = [
    "Engine",
    "FusedConv",
    "FusedConvTranspose",
    "FusedLinear",
    "foldable",
    "onednn_fuses",
    "weights_for",
]

_NAMED = ("same", "valid")
# Exactly these classes: a subclass may do more than normalise (timm's also apply the activation).
_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, NaiveSyncBatchNorm)


@dataclass(frozen=True)
class Engine:
    """What the fused layers of a network compute with.

    Attributes:
        dtype: of the layers.
        onednn: whether to use oneDNN's fused convolutions on the CPU.
        winograd: what 3x3 convolutions multiply by Winograd's algorithm on the CPU: "int16", "float32" or None.
        bf16_kernels: whether in bf16 on the CPU 1x1 convolutions and linear layers are `pointwise_conv`, and the stem
            of a ResNet `stem_conv_pool`.
    """

    dtype: torch.dtype
    onednn: bool = False
    winograd: str | None = None
    bf16_kernels: bool = False

    def runs_bf16_kernels(self, x: Tensor) -> bool:
        return self.bf16_kernels and self.dtype == torch.bfloat16 and x.device.type == "cpu"


def foldable(norm: nn.Module | None) -> bool:
    """Whether at inference the normalisation is an affine map of each channel."""
    return type(norm) in _BATCH_NORMS and norm.running_mean is not None


def onednn_fuses(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's convolutions with fused epilogues, which it says if not, and they run in the
    dtype on this CPU."""
    names = ("_convolution_pointwise", "_convolution_pointwise_")
    if torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names):
        return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    logging.getLogger(__name__).warning(
        "This PyTorch has no oneDNN convolutions with fused ReLU and addition: they are passes of their own. "
        "Builds from pytorch.org for x86-64 and arm64 have them"
    )
    return False


class _Prepared:
    """What was made of some tensors, as long as they have not changed. Copies and pickles are empty."""

    def __init__(self):
        self._sources, self._stamp, self._value = (), None, None

    def get(self, sources: tuple[Tensor, ...], setting, make: Callable):
        stamp = (setting, [(source.data_ptr(), _version(source)) for source in sources])
        same = len(sources) == len(self._sources) and all(map(operator.is_, sources, self._sources))
        if not same or stamp != self._stamp:
            # Not as tensors of inference mode: calls outside of it are to have them too.
            outside = torch.inference_mode(False), torch.no_grad()
            with outside[0], outside[1], torch.autocast(sources[0].device.type, enabled=False):
                self._value = make()
            self._sources, self._stamp = sources, stamp
        return self._value

    def __reduce__(self):
        return _Prepared, ()


def _version(tensor):
    return None if tensor.is_inference() else tensor._version  # those of inference mode have none


def weights_for(module: nn.Module, sources: tuple[Tensor | None, ...], setting, make: Callable):
    """``make()``, kept with a swapped module until one of ``sources`` or ``setting`` is another."""
    prepared = module._swapped.setdefault("prepared", _Prepared())
    return prepared.get(tuple(source for source in sources if source is not None), setting, make)


class FusedConv:
    """Mixin for a Conv2d, with or without a ``norm`` and a ReLU of its own.

    Attributes to swap it in with: ``engine``; ``relu``, whether the stock forward ends with a ReLU.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.run(x, relu=self._swapped["relu"])

    def run(
        self, x: Tensor, relu: bool = False, add: Tensor | None = None, add_doubled: Tensor | None = None
    ) -> Tensor:
        """The convolution and its normalisation of x, plus ``add`` (overwritten), then a ReLU if asked for.
        Instead of ``add`` there may be ``add_doubled``, half as high and wide, which is brought to twice its size
        first, each cell four times."""
        engine, norm = self._swapped["engine"], getattr(self, "norm", None)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(engine.dtype)
            folded = norm is None or foldable(norm)
            if folded and engine.runs_bf16_kernels(x) and pointwise_serves(self):
                return self._pointwise(x, norm, relu, add, add_doubled)
            if add_doubled is not None:
                add = F.interpolate(add_doubled, scale_factor=2.0, mode="nearest")
            if folded:
                return self._convolve(x, norm, relu, add)
            x = norm(self._convolve(x, None).float()).to(engine.dtype)
            return _finish(x, relu, add)

    def runs_as_stem(self, x: Tensor) -> bool:
        """Whether `run_stem` can have x."""
        norm = getattr(self, "norm", None)
        folded = norm is None or foldable(norm)
        return folded and self._swapped["engine"].runs_bf16_kernels(x) and stem_serves(self)

    def run_stem(self, x: Tensor) -> Tensor:
        """As `run` with a ReLU, followed by max pooling of 3x3 and stride 2."""
        norm = getattr(self, "norm", None)
        make = partial(self._make_reordered, norm, stem_weight)
        weight, bias = weights_for(self, self._sources(norm), "stem", make)
        return stem_conv_pool(x, weight, bias)

    def _pointwise(self, x, norm, relu, add, add_doubled):
        make = partial(self._make_reordered, norm, pointwise_weight)
        weight, bias = weights_for(self, self._sources(norm), "pointwise", make)
        if add is None:
            return pointwise_conv(x, weight, bias, add_doubled, self.stride[0], relu)
        add = add.contiguous(memory_format=torch.channels_last)
        return add_pointwise_conv_(add, x, weight, bias, self.stride[0], relu)

    def _convolve(self, x, norm, relu=False, add=None):
        engine = self._swapped["engine"]
        if engine.winograd and x.device.type == "cpu" and winograd_serves(self):
            reorder = partial(winograd_weight, int16=engine.winograd == "int16")
            make = partial(self._make_reordered, norm, reorder)
            weight, bias = weights_for(self, self._sources(norm), engine.winograd, make)
            return winograd_conv3x3(x, weight, bias, add, relu)
        weight, bias = weights_for(self, self._sources(norm), None, partial(self._make, norm))
        # oneDNN's fused convolutions take no empty batch and no padding by name.
        if not engine.onednn or x.device.type != "cpu" or x.numel() == 0 or self.padding in _NAMED:
            x = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
            return _finish(x, relu, add)
        x = x.contiguous(memory_format=torch.channels_last)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if add is None:
            unary = "relu" if relu else "none"
            return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *geometry, unary, [], "")
        add = add.contiguous(memory_format=torch.channels_last)
        unary = "relu" if relu else None
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            add, x, weight, bias, *geometry, "add", 1.0, unary, [], ""
        )

    def _sources(self, norm):
        sources = (self.weight, self.bias)
        return (
            sources
            if norm is None
            else (*sources, norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )

    def _fold(self, norm):
        weight, bias = self.weight.detach(), self.bias
        if norm is not None:
            scale = (norm.running_var + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight
            shift = (-norm.running_mean if bias is None else bias - norm.running_mean) * scale
            bias = shift if norm.bias is None else shift + norm.bias
            weight = weight * scale.view(-1, 1, 1, 1)
        return weight, bias

    def _make(self, norm):
        weight, bias = self._fold(norm)
        dtype = self._swapped["engine"].dtype
        # Not in oneDNN's blocked layouts: which is best depends on the size of the image, and bringing a wrong one
        # into it costs more than the convolution.
        return weight.to(dtype).contiguous(memory_format=torch.channels_last), _to(bias, dtype)

    def _make_reordered(self, norm, reorder):
        weight, bias = self._fold(norm)
        return reorder(weight), _to(bias, torch.float32)


class FusedConvTranspose:
    """Mixin for a ConvTranspose2d; a ReLU may follow. Attribute: ``engine``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.run(x)

    def run(self, x: Tensor, relu: bool = False) -> Tensor:
        weight, bias = _cast(self)
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


class FusedLinear:
    """Mixin for a Linear; a ReLU may follow. Attribute: ``engine``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.run(x)

    def run(self, x: Tensor, relu: bool = False) -> Tensor:
        return self._run(x, relu, None, lambda weight: weight)

    def run_on_map(self, x: Tensor, relu: bool = False) -> Tensor:
        """As `run` of ``x.flatten(1)``, which a channels-last (N, C, H, W) map does not have without a copy:
        the columns of the weight are put in the order of the map's memory instead."""
        shape = x.shape[1:]
        rows = x.permute(0, 2, 3, 1).flatten(1)
        return self._run(
            rows, relu, shape, lambda weight: weight.view(-1, *shape).permute(0, 2, 3, 1).flatten(1)
        )

    def _run(self, x, relu, setting, order):
        engine = self._swapped["engine"]
        pointwise = engine.runs_bf16_kernels(x) and self.in_features % 2 == 0 and x.dim() == 2

        def make():
            weight = order(self.weight.detach())
            if pointwise:
                return pointwise_weight(weight), _to(self.bias, torch.float32)
            return weight.to(engine.dtype).contiguous(), _to(self.bias, engine.dtype)

        weight, bias = weights_for(self, (self.weight, self.bias), (setting, pointwise), make)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(engine.dtype)
            if pointwise:
                return pointwise_conv(x[:, :, None, None], weight, bias, relu=relu)[:, :, 0, 0]
            return _finish(F.linear(x, weight, bias), relu)


def _finish(x, relu, add=None):
    x = x if add is None else x.add_(add)
    return x.relu_() if relu else x


def _cast(layer):
    def make():
        return tuple(_to(value, layer._swapped["engine"].dtype) for value in (layer.weight, layer.bias))

    return weights_for(layer, (layer.weight, layer.bias), None, make)


def _to(value, dtype):
    return None if value is None else value.detach().to(dtype)
