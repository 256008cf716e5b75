"""Parts of networks that several frameworks write alike: residual blocks, the stem of a ResNet, a feature pyramid, and
the end of a mask head."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops.pointwise import pointwise_conv
from .fused_layers import FusedConv2d, FusedConvTranspose2d, matrix_for
from .fused_module import FusedModule, PreparedWeights, replace_child
from .kernel_support import doubling_as_linear
from .mixed_precision import to_float32
from .policy import KernelPolicy
from .rules import fuse

__all__ = [
    "ConvNorm",
    "FusedBasicBlock",
    "FusedBlock",
    "FusedBottleneck",
    "FusedPyramid",
    "FusedStem",
    "JointConvs",
    "PredictedClassMasks",
]


@dataclass(frozen=True)
class ConvNorm:
    """Names of a convolution within a module and of the normalisation after it, if that is no part of it.

    Attributes:
        conv, norm: dotted names from the module on; ``norm`` None for none.
        relu: whether a ReLU of the original's own follows.
    """

    conv: str
    norm: str | None = None
    relu: bool = False

    def fuse(self, module: nn.Module, policy: KernelPolicy) -> None:
        """Puts a `FusedConv2d` in the convolution's place."""
        parent, _, name = self.conv.rpartition(".")
        fused = fuse(module.get_submodule(self.conv), policy)
        if not isinstance(fused, FusedConv2d):
            raise TypeError(f"{self.conv} of {type(module).__name__} is no convolution that can be fused")
        replace_child(module.get_submodule(parent), name, fused)
        fused.fuses = () if self.norm is None else (f"norm={self.norm}",)

    def run(self, module: nn.Module, x: Tensor, relu: bool = False, **added) -> Tensor:
        """As `FusedConv2d.run`, with the normalisation."""
        norm = None if self.norm is None else module.get_submodule(self.norm)
        return self.layer(module).run(x, relu=relu or self.relu, norm=norm, **added)

    def layer(self, module: nn.Module) -> FusedConv2d:
        """What `fuse` put in the convolution's place."""
        layer = module.get_submodule(self.conv)
        assert isinstance(layer, FusedConv2d)
        return layer


class FusedBlock(FusedModule):
    """A residual block: ReLUs and the addition of the shortcut within the convolutions.

    Args:
        original: the block.
        policy: what to compute with.
        convs: of the residual branch, in order.
        shortcut: the projection of the shortcut; None for the identity.
    """

    def __init__(
        self,
        original: nn.Module,
        policy: KernelPolicy,
        convs: Sequence[ConvNorm],
        shortcut: ConvNorm | None,
    ):
        super().__init__(original)
        self.policy = policy
        self.convs = tuple(convs)
        self.projection = shortcut
        for conv in (*self.convs, *([] if shortcut is None else [shortcut])):
            conv.fuse(original, policy)

    def infer(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """
        Args:
            x: (N, C, H, W) floating point.
            overwrite: whether x may be written over: nobody else reads it.

        Returns:
            (N, O, H', W') in the dtype of the policy.
        """
        # The sum is written over the shortcut.
        if self.projection is not None:
            shortcut = self.projection.run(self, x)
        else:
            shortcut = x.to(self.policy.dtype)
            shortcut = x.clone() if shortcut is x and not overwrite else shortcut
        *first, last = self.convs
        for conv in first:
            x = conv.run(self, x, relu=True)
        return last.run(self, x, relu=True, add=shortcut)

    def extra_repr(self) -> str:
        return type(self.original).__name__


class FusedBottleneck(FusedBlock):
    """A bottleneck block of three convolutions (He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016,
    figure 5)."""


class FusedBasicBlock(FusedBlock):
    """A basic block of two convolutions (the same figure)."""


class FusedStem(FusedModule):
    """The stem of a ResNet: a convolution, ReLU, max pooling of 3x3, stride 2 and padding 1.

    Args:
        original: the stem.
        policy: what to compute with.
        conv: its convolution.
    """

    def __init__(self, original: nn.Module, policy: KernelPolicy, conv: ConvNorm):
        super().__init__(original)
        self.stem_conv = conv
        conv.fuse(original, policy)
        conv.layer(original).fuses += ("relu", "max_pool")

    def runs_in_one_pass(self, x: Tensor) -> bool:
        """Whether convolution and pooling are `stem_conv_pool`."""
        layer, norm = self._layers()
        return layer.runs_as_stem(x, norm)

    def infer(self, x: Tensor) -> Tensor:
        layer, norm = self._layers()
        if layer.runs_as_stem(x, norm):
            return layer.run_stem(x, norm)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.max_pool2d(layer.run(x, relu=True, norm=norm), kernel_size=3, stride=2, padding=1)

    def _layers(self):
        conv, norm = self.stem_conv.conv, self.stem_conv.norm
        return self.get_submodule(conv), None if norm is None else self.get_submodule(norm)

    def extra_repr(self) -> str:
        return type(self.original).__name__


class FusedPyramid(FusedModule):
    """The top-down pathway of a feature pyramid (Lin et al., *Feature Pyramid Networks for Object Detection*, CVPR
    2017, section 3): upsampling and addition within the lateral convolutions. A subclass defines ``infer``.

    Args:
        original: the pyramid.
        policy: what to compute with.
        laterals, outputs: its convolutions, finest level first.
        average: whether a level is the mean of the lateral and of the level above, rather than their sum.
    """

    def __init__(
        self,
        original: nn.Module,
        policy: KernelPolicy,
        laterals: Sequence[ConvNorm],
        outputs: Sequence[ConvNorm],
        average: bool = False,
    ):
        super().__init__(original)
        self.laterals, self.outputs, self.average = tuple(laterals), tuple(outputs), average
        for conv in (*self.laterals, *self.outputs):
            conv.fuse(original, policy)

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """
        Args:
            maps: (N, C_l, H_l, W_l), finest first.

        Returns:
            (N, C, H_l, W_l) for each of them.
        """
        results: list[Tensor] = []
        merged: Tensor | None = None
        for x, lateral, output in zip(maps[::-1], self.laterals[::-1], self.outputs[::-1], strict=True):
            if merged is None:
                merged = lateral.run(self, x)
            elif x.shape[2:] == (2 * merged.shape[2], 2 * merged.shape[3]):
                merged = lateral.run(self, x, add_doubled=merged)
            else:
                merged = lateral.run(self, x, add=F.interpolate(merged, size=x.shape[2:], mode="nearest"))
            if self.average and results:
                merged = merged / 2
            results.insert(0, output.run(self, merged))
        return results

    def extra_repr(self) -> str:
        return type(self.original).__name__


class JointConvs:
    """1x1 convolutions of the same map by one product, in float32, or in the dtype of the policy if that is wider.

    Args:
        convs: 1x1 convolutions of one number of input channels, with biases.
        policy: what to compute with.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], policy: KernelPolicy):
        self.convs, self.policy = tuple(convs), policy
        self.prepared = PreparedWeights()

    @staticmethod
    def serves(convs: Sequence[nn.Conv2d]) -> bool:
        """Whether some layers are such convolutions."""
        return all(
            type(conv) is nn.Conv2d
            and conv.bias is not None
            and (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
            for conv in convs
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) -> (N, O_i, H, W) of each."""
        pointwise = self.policy.runs_pointwise(self.convs[0].in_channels, x.device)
        x = x.to(self.policy.dtype) if pointwise else x

        def make():
            weight, bias = (
                torch.cat([getattr(conv, name).detach() for conv in self.convs])
                for name in ("weight", "bias")
            )
            return matrix_for(weight, bias, x.dtype, pointwise)

        sources = tuple(getattr(conv, name) for conv in self.convs for name in ("weight", "bias"))
        weight, bias = self.prepared.get(sources, (x.dtype, pointwise), make)
        with torch.autocast(x.device.type, enabled=False):
            if pointwise:
                x = pointwise_conv(x, weight, bias, float32=True)
            else:
                x = to_float32(F.conv2d(x, weight, bias))
        return x.split([conv.out_channels for conv in self.convs], dim=1)


class PredictedClassMasks:
    """The end of a mask head, a transposed convolution of 2x2 and stride 2, a ReLU and a 1x1 convolution to a map per
    class, for one class of each RoI, and a few RoIs at a time so that what lies between stays in the cache.

    Args:
        deconv: the transposed convolution, for which `is_doubling` holds.
        predictor: the 1x1 convolution, without normalisation or activation.
        policy: what to compute with.
    """

    _ROIS = 10

    def __init__(self, deconv: nn.ConvTranspose2d, predictor: nn.Conv2d, policy: KernelPolicy):
        self.deconv, self.predictor, self.policy = deconv, predictor, policy
        self.prepared = PreparedWeights()

    def __call__(self, x: Tensor, classes: Tensor) -> Tensor:
        """
        Args:
            x: (R, C, H, W), the features of the RoIs.
            classes: (R,) int64, which map of the predictor each wants; ignored if there is one.

        Returns:
            (R, 1, 2 H, 2 W) float32 logits.
        """
        predictor, dtype = self.predictor, self.policy.dtype
        if predictor.out_channels == 1:  # class-agnostic
            classes = torch.zeros_like(classes)
        pointwise = self.policy.runs_pointwise(self.deconv.in_channels, x.device)
        with torch.autocast(x.device.type, enabled=False):
            of_class = predictor.weight.detach()[classes, :, 0, 0].to(dtype)[:, :, None]
            rois, _, height, width = x.shape
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            step = self._ROIS if x.device.type == "cpu" else max(rois, 1)
            wide = torch.promote_types(dtype, torch.float32)
            logits = x.new_empty((rois, height, width, 2, 2), dtype=wide)
            for begin in range(0, rois, step):
                some = slice(begin, begin + step)
                hidden = self._hidden(x[some], pointwise)
                hidden = hidden.reshape(-1, 4 * height * width, of_class.shape[1])
                logits[some] = torch.bmm(hidden, of_class[some]).view(-1, height, width, 2, 2)
            logits = logits.transpose(2, 3).reshape(rois, 1, 2 * height, 2 * width)
            if predictor.bias is None:
                return logits
            return logits + predictor.bias.detach()[classes, None, None, None]

    def _hidden(self, x, pointwise):
        """(R, C, H, W) -> (R, H, W, 2 2 O)."""
        if pointwise and isinstance(self.deconv, FusedConvTranspose2d):
            return self.deconv.run_as_linear(x, relu=True).permute(0, 2, 3, 1)
        weight, bias = self._weights(pointwise)
        if pointwise:
            return pointwise_conv(x, weight, bias, relu=True).permute(0, 2, 3, 1)
        return F.linear(x.permute(0, 2, 3, 1), weight, bias).relu_()

    def _weights(self, pointwise):
        deconv = self.deconv

        def make():
            weight, bias = doubling_as_linear(deconv.weight.detach(), deconv.bias)
            return matrix_for(weight, bias, self.policy.dtype, pointwise)

        return self.prepared.get((deconv.weight, deconv.bias), pointwise, make)
