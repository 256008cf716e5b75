"""Residual blocks and stems that train faster: what follows a convolution becomes part of it."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.pointwise import PreparedPointwise, conv1x1
from ..ops.prediction_head import prediction_head
from ..ops.stem import stem_conv_pool, stem_weight
from .conv_classes import is_relu
from .cpu_features import bf16_kernels_are_available, float32_kernels_are_available
from .fused_blocks import ConvNorm
from .fused_module import FusedModule, PreparedWeights, replace_child
from .kernel_support import doubling_as_linear, supports_stem
from .norms import folded, is_affine
from .trained_layers import PointwiseConv2d, TrainedConv2d, WinogradConv2d, as_autocast, trains_pointwise

__all__ = ["FrozenStem", "TrainedBlock", "TrainedClassMaps", "TrainedPredictions", "train_blocks"]


def train_blocks(
    model: nn.Module,
    blocks: Iterable[tuple[str, list[ConvNorm], ConvNorm | None]],
    stems: Iterable[tuple[str, ConvNorm]],
) -> str:
    """Lets residual blocks train as `TrainedBlock` and stems as `FrozenStem`; returns what was done.

    Args:
        blocks, stems: as `Framework` yields them.
    """
    blocks, stems = list(blocks), [stem for stem in stems if supports_stem(_conv(model, *stem))]
    for name, convs, shortcut in blocks:
        _replace(model, name, TrainedBlock(model.get_submodule(name), convs, shortcut))
    for name, conv in stems:
        _replace(model, name, FrozenStem(model.get_submodule(name), conv))
    return f"{len(blocks)} residual blocks and {len(stems)} stems fused"


def _conv(model, name, conv):
    return model.get_submodule(name).get_submodule(conv.conv)


def _replace(model, name, module):
    parent, _, leaf = name.rpartition(".")
    replace_child(model.get_submodule(parent), leaf, module)


class TrainedBlock(FusedModule):
    """A residual block whose ReLUs and addition are within those convolutions that are `TrainedConv2d`.

    Args:
        original: the block; every convolution has its normalisation in itself.
        convs: of the residual branch, in order.
        shortcut: the projection of the shortcut; None for the identity.
    """

    def __init__(self, original: nn.Module, convs: list[ConvNorm], shortcut: ConvNorm | None):
        super().__init__(original)
        self.convs, self.projection = tuple(convs), shortcut

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.projection is None else self.get_submodule(self.projection.conv)(x)
        *first, last = self.convs
        for conv in first:
            x = self._run(conv, x)
        return self._run(last, x, shortcut)

    def _run(self, conv, x, add=None):
        layer = self.get_submodule(conv.conv)
        if isinstance(layer, TrainedConv2d):
            return layer.run(x, relu=True, add=add)
        x = layer(x)
        return F.relu_(x if add is None else x + add)

    def extra_repr(self) -> str:
        return type(self.original).__name__


class FrozenStem(FusedModule):
    """The stem of a ResNet, a convolution, ReLU and max pooling; one pass where no gradient is wanted of it, else the
    original.

    Args:
        original: the stem.
        conv: its convolution, for which `supports_stem` holds, its normalisation in itself.
    """

    def __init__(self, original: nn.Module, conv: ConvNorm):
        super().__init__(original)
        self.stem_conv = conv
        self.prepared = PreparedWeights()

    def forward(self, x: Tensor) -> Tensor:
        conv: Any = self.get_submodule(self.stem_conv.conv)
        norm = conv._modules.get("norm")
        if x.device.type != "cpu" or not is_affine(norm) or self._wants_gradient(x):
            return self.original(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype != torch.bfloat16 and dtype != conv.weight.dtype:
            return self.original(x)
        served = {torch.bfloat16: bf16_kernels_are_available, torch.float32: float32_kernels_are_available}
        if dtype not in served or not served[dtype]():
            return self.original(x)

        def make():
            weight, bias = folded(conv.weight, conv.bias, norm)
            return stem_weight(weight, dtype=dtype), None if bias is None else bias.float()

        sources = [conv.weight, conv.bias]
        if norm is not None:
            sources += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        return stem_conv_pool(x, *self.prepared.get(tuple(sources), dtype, make))

    def _wants_gradient(self, x):
        return torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.parameters())
        )

    def extra_repr(self) -> str:
        return f"{type(self.original).__name__}; stem_conv_pool where frozen"


class TrainedPredictions:
    """A 3x3 convolution, ReLU, and 1x1 convolutions of its result, as `prediction_head` computes them.

    Args:
        conv: of 3x3.
        predictors: of 1x1.
    """

    def __init__(self, conv: nn.Module, predictors: Sequence[nn.Module]):
        self.conv: Any = conv  # of whose attributes only `serves` knows
        self.predictors: tuple[Any, ...] = tuple(predictors)
        self.prepared = PreparedWeights()

    @staticmethod
    def serves(conv: nn.Module, predictors: Sequence[nn.Module]) -> bool:
        """Whether they are such layers, prepared for training, with biases and without normalisations."""
        return (
            isinstance(conv, WinogradConv2d)
            and is_relu(conv.activation_after)
            and all(
                isinstance(layer, PointwiseConv2d) and layer.activation_after is None for layer in predictors
            )
            and all(layer.stride == (1, 1) for layer in predictors)
            and all(layer.bias is not None for layer in (conv, *predictors))
            and all(layer._modules.get("norm") is None for layer in (conv, *predictors))
        )

    def __call__(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> (N, K_i, H, W) of each predictor."""
        conv, predictors = self.conv, self.predictors
        x = as_autocast(x)
        if x.numel() == 0 or not (conv.serves(x) and all(layer.serves_dtype(x) for layer in predictors)):
            hidden = conv(x)
            return [layer(hidden) for layer in predictors]
        weights, biases = ([getattr(layer, name) for layer in predictors] for name in ("weight", "bias"))
        with torch.autocast("cpu", enabled=False):
            weight, bias = torch.cat(weights), torch.cat(biases)
            int16 = conv.multiplies_int16(x)
            of_conv = conv.prepared_for(int16)
            of_predictors = self.prepared.get(
                tuple(weights), x.dtype, lambda: PreparedPointwise(torch.cat(weights), x.dtype)
            )
            results = prediction_head(x, conv.weight, conv.bias, weight, bias, of_conv, of_predictors, int16)
        return list(results.split([layer.out_channels for layer in predictors], dim=1))


class TrainedClassMaps:
    """The end of a mask head in training, a transposed convolution of 2x2 and stride 2, a ReLU and a 1x1 convolution to
    a map per class, for one class of each RoI. What lies between stays in the order in which it is computed.

    Args:
        deconv: the transposed convolution, for which `is_doubling` holds.
        predictor: the 1x1 convolution, without normalisation or activation.
    """

    def __init__(self, deconv: nn.Module, predictor: nn.Module):
        self.deconv: Any = deconv
        self.predictor: Any = predictor

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            x: (R, C, H, W), R > 0.
            classes: (R,) int64, which map of the predictor each wants.

        Returns:
            (R, 1, 2 H, 2 W) logits.
        """
        x = as_autocast(x)
        rois, _, height, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = doubling_as_linear(self.deconv.weight, self.deconv.bias)
            if trains_pointwise(x, weight):
                hidden = conv1x1(x, weight[:, :, None, None], bias, relu=True)
            else:
                bias = None if bias is None else bias.to(x.dtype)
                hidden = F.linear(x.permute(0, 2, 3, 1), weight.to(x.dtype), bias).relu().permute(0, 3, 1, 2)
            of_class = F.embedding(classes, self.predictor.weight.flatten(1)).to(x.dtype)  # (R, C')
            rows = hidden.permute(0, 2, 3, 1).reshape(rois, height * width * 4, -1)
            maps = torch.bmm(rows, of_class[:, :, None]).view(rois, height, width, 2, 2).transpose(2, 3)
            maps = maps.reshape(rois, 1, 2 * height, 2 * width)
            if self.predictor.bias is None:
                return maps
            return maps + self.predictor.bias[classes, None, None, None].to(x.dtype)
