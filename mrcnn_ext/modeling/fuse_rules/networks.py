"""The stock networks over fused layers: what their forward does, with fewer passes over memory."""

from itertools import pairwise

import torch
from detectron2.layers import Conv2d, cat
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from detectron2.modeling.proposal_generator.rpn import StandardRPNHead
from detectron2.modeling.roi_heads.box_head import FastRCNNConvFCHead
from detectron2.modeling.roi_heads.keypoint_head import KRCNNConvDeconvUpsampleHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, mask_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...accel.class_swap import defines, swap
from ...accel.fused_layers import Engine, FusedConv, FusedConvTranspose, FusedLinear, weights_for
from ...accel.kernel_support import doubling_as_linear, is_doubling, pointwise_serves
from ...layers.conv import ConvNormReLU
from ...ops.pointwise import pointwise_conv, pointwise_weight
from ..keypoint_head import HeatmapKeypointHead
from ..mask_head import FCNMaskHead

__all__ = ["fuse_network"]


def fuse_network(network: nn.Module, engine: Engine) -> bool:
    """Makes the layers of a network fused ones, if it is one of those known here; heads give float32 in the end.

    Args:
        network: a backbone without what feeds it, or a head.
        engine: what its layers are to compute with.

    Returns:
        Whether it is known; otherwise it is left as it was.
    """
    if not _known(network):
        return False
    of_one_class = _predicts_class_by_class(network)
    others = set(network.bottom_up.modules()) if isinstance(network, FPN) else ()
    for module in [module for module in network.modules() if module not in others]:
        if _is_conv(module):
            swap(module, FusedConv, engine=engine, relu=_ends_with_relu(module))
        elif defines(module, nn.ConvTranspose2d, "forward"):
            swap(module, FusedConvTranspose, engine=engine)
        elif defines(module, nn.Linear, "forward"):
            swap(module, FusedLinear, engine=engine)
        else:
            for owners, method, mixin in _MIXINS:
                if any(defines(module, owner, method) for owner in owners):
                    swap(module, mixin, engine=engine)
    if of_one_class:
        swap(network, _FusedMaskPrediction, engine=engine)
    for stage in network.stages if isinstance(network, ResNet) else [network]:
        # Of a stage only the last output is read by others, so each further block may write over its input.
        for previous, block in pairwise(stage.children()):
            if isinstance(block, _FusedBlock):
                block._swapped["input_of"] = previous
    return True


def _known(network):
    if isinstance(network, ResNet):
        blocks = [block for stage in network.stages for block in stage]
        return (
            defines(network, ResNet, "forward")
            and _all_convs(network.stem, BasicStem)
            and all(_all_convs(block, BasicBlock) or _all_convs(block, BottleneckBlock) for block in blocks)
        )
    if isinstance(network, nn.Sequential) and type(network).forward is nn.Sequential.forward:
        return len(network) > 0 and all(_all_convs(block, BottleneckBlock) for block in network)
    if isinstance(network, FPN):  # its bottom-up network is another
        return defines(network, FPN, "forward") and all(
            map(_is_conv, [*network.lateral_convs, *network.output_convs])
        )
    heads = (StandardRPNHead, FastRCNNConvFCHead)
    return any(defines(network, head, "forward") for head in heads) or any(
        defines(network, head, "layers")
        for head in (MaskRCNNConvUpsampleHead, KRCNNConvDeconvUpsampleHead, FCNMaskHead, HeatmapKeypointHead)
    )


def _predicts_class_by_class(network):
    """Whether a mask head ends as `_FusedMaskPrediction` does, and makes masks of its logits as stock."""
    stock = defines(network, MaskRCNNConvUpsampleHead, "forward", "layers")
    ours = defines(network, FCNMaskHead, "forward", "layers", "inference") and not network.softmax
    if not (stock or ours) or len(network) < 3:
        return False
    deconv, relu, predictor = list(network)[-3:]
    return (
        is_doubling(deconv)
        and type(relu) is nn.ReLU
        and _is_conv(predictor)
        and not _ends_with_relu(predictor)
        and getattr(predictor, "norm", None) is None
        and (predictor.kernel_size, predictor.stride, predictor.groups) == ((1, 1), (1, 1), 1)
        and predictor.padding in ((0, 0), "valid")
    )


def _all_convs(block, owner):
    return defines(block, owner, "forward") and all(
        _is_conv(child) for child in block.children() if child is not None
    )


def _is_conv(module):
    if not defines(module, nn.Conv2d, "_conv_forward"):
        return False
    if defines(module, Conv2d, "forward"):
        return module.activation is None or _is_relu(module.activation)
    plain = defines(module, nn.Conv2d, "forward") and module.padding_mode == "zeros"
    return plain or defines(module, ConvNormReLU, "forward")


def _is_relu(activation):
    return type(activation) is nn.ReLU or activation in (F.relu, F.relu_, torch.relu, torch.relu_)


def _ends_with_relu(conv):
    return isinstance(conv, ConvNormReLU) or getattr(conv, "activation", None) is not None


# --- backbone ----------------------------------------------------------------------------------------------


class _FusedStem:
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        if self.conv1.runs_as_stem(x):
            return self.conv1.run_stem(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.max_pool2d(self.conv1.run(x, relu=True), kernel_size=3, stride=2, padding=1)


class _FusedBlock:
    """A basic or a bottleneck block: ReLUs and the residual addition within the convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        *first, last = [self.conv1, self.conv2] + ([self.conv3] if hasattr(self, "conv3") else [])
        # The sum is written over the shortcut: over x itself only where nobody else reads it.
        shortcut = self.shortcut.run(x) if self.shortcut is not None else self._own(x)
        for conv in first:
            x = conv.run(x, relu=True)
        return last.run(x, relu=True, add=shortcut)

    def _own(self, x):
        x = x.to(self._swapped["engine"].dtype)
        source = self._swapped.get("input_of")
        # A hook may have kept what it saw.
        seen = source is None or source._forward_hooks or self._forward_hooks or self._forward_pre_hooks
        return x.clone() if seen else x


class _FusedFPN:
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.training:
            return super().forward(x)
        bottom_up = self.bottom_up(x)
        merged, results = None, []
        for name, lateral, output in zip(
            self.in_features[::-1], self.lateral_convs, self.output_convs, strict=True
        ):
            if merged is None:
                merged = lateral(bottom_up[name])
            else:
                merged = lateral.run(bottom_up[name], add_doubled=merged)
                if self._fuse_type == "avg":
                    merged = merged / 2
            results.insert(0, output(merged))
        if self.top_block is not None:
            name = self.top_block.in_feature
            source = bottom_up[name] if name in bottom_up else results[self._out_features.index(name)]
            results.extend(self.top_block(source))
        return dict(zip(self._out_features, results, strict=True))


# --- heads -------------------------------------------------------------------------------------------------


class _FusedRPNHead:
    """Objectness and deltas by one convolution; both in float32."""

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        if self.training:
            return super().forward(features)
        logits, deltas = [], []
        for x in features:
            x = self.conv(x)
            both = self._predict(x)
            logits.append(both[:, : self.objectness_logits.out_channels])
            deltas.append(both[:, self.objectness_logits.out_channels :])
        return logits, deltas

    def _predict(self, x):
        convs = (self.objectness_logits, self.anchor_deltas)
        pointwise = self._swapped["engine"].runs_bf16_kernels(x) and all(map(pointwise_serves, convs))

        def make():
            weight, bias = (
                cat([getattr(conv, name).detach() for conv in convs]) for name in ("weight", "bias")
            )
            if pointwise:
                return pointwise_weight(weight), bias.float()
            return weight.to(x.dtype), bias.to(x.dtype)

        sources = tuple(getattr(conv, name) for conv in convs for name in ("weight", "bias"))
        weight, bias = weights_for(self, sources, (x.dtype, pointwise), make)
        with torch.autocast(x.device.type, enabled=False):
            if pointwise:
                return pointwise_conv(x, weight, bias, float32=True)
            return F.conv2d(x, weight, bias).float()


class _FusedLayers:
    """A sequence of layers, each ReLU within the layer before it; the result in float32."""

    def run_layers(self, x: Tensor) -> Tensor:
        return self.run(list(self), x).float()

    def run(self, layers: list[nn.Module], x: Tensor) -> Tensor:
        index = 0
        while index < len(layers):
            layer, index = layers[index], index + 1
            if isinstance(layer, nn.Flatten) and index < len(layers) and _is_rows_of(layers[index], x):
                x, index = self._linear_on_map(layers, index, x)
            elif isinstance(layer, (FusedConv, FusedConvTranspose, FusedLinear)):
                relu = index < len(layers) and type(layers[index]) is nn.ReLU
                own = isinstance(layer, FusedConv) and layer._swapped["relu"]
                x = layer.run(x, relu=relu or own)
                index += relu
            else:
                x = layer(x if isinstance(layer, (nn.Flatten, nn.ReLU)) else x.float())
        return x

    @staticmethod
    def _linear_on_map(layers, index, x):
        relu = index + 1 < len(layers) and type(layers[index + 1]) is nn.ReLU
        return layers[index].run_on_map(x, relu), index + 1 + relu


def _is_rows_of(layer, x):
    return isinstance(layer, FusedLinear) and x.is_contiguous(memory_format=torch.channels_last)


class _FusedBoxHead(_FusedLayers):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.run_layers(x)


class _FusedMaskHead(_FusedLayers):
    def layers(self, x: Tensor) -> Tensor:
        return super().layers(x) if self.training else self.run_layers(x)


class _FusedMaskPrediction:
    """The end of a mask head, a transposed convolution, a ReLU and a 1x1 convolution, for the predicted class
    alone, and a few RoIs at a time so that what lies between stays in the cache."""

    _ROIS = 10

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        if self.training:
            return super().forward(x, instances)
        classes = cat([image.pred_classes for image in instances])
        with torch.autocast(x.device.type, enabled=False):
            logits = self.predict_logits(x, classes)
        mask_rcnn_inference(logits, instances)  # which takes a single map for class-agnostic
        return instances

    def predict_logits(self, x: Tensor, classes: Tensor) -> Tensor:
        """The logits (R, 1, 2 H, 2 W) float32 of RoIs x (R, C, H, W) for their classes (R,)."""
        *layers, deconv, _, predictor = self
        x = self.run(layers, x)
        if predictor.out_channels == 1:  # class-agnostic
            classes = torch.zeros_like(classes)
        dtype = self._swapped["engine"].dtype
        pointwise = self._swapped["engine"].runs_bf16_kernels(x) and deconv.in_channels % 2 == 0

        def make():
            weight, bias = doubling_as_linear(deconv.weight.detach(), deconv.bias)
            if pointwise:
                return pointwise_weight(weight), None if bias is None else bias.detach().float()
            return weight.to(dtype).contiguous(), None if bias is None else bias.detach().to(dtype)

        weight, bias = weights_for(deconv, (deconv.weight, deconv.bias), ("linear", pointwise), make)
        of_class = predictor.weight.detach()[classes, :, 0, 0].to(dtype)[:, :, None]
        rois, _, height, width = x.shape
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        step = self._ROIS if x.device.type == "cpu" else max(rois, 1)
        logits = x.new_empty((rois, height, width, 2, 2), dtype=torch.float32)
        for begin in range(0, rois, step):
            some = slice(begin, begin + step)
            if pointwise:
                hidden = pointwise_conv(x[some], weight, bias, relu=True).permute(0, 2, 3, 1)
            else:
                hidden = F.linear(x[some].permute(0, 2, 3, 1), weight, bias).relu_()
            hidden = hidden.reshape(-1, 4 * height * width, of_class.shape[1])
            logits[some] = torch.bmm(hidden, of_class[some]).view(-1, height, width, 2, 2)
        logits = logits.transpose(2, 3).reshape(rois, 1, 2 * height, 2 * width)
        return (
            logits if predictor.bias is None else logits + predictor.bias.detach()[classes, None, None, None]
        )


class _FusedKeypointHead(_FusedLayers):
    def layers(self, x: Tensor) -> Tensor:
        # Heatmaps are read one by one, whatever layout the convolutions preferred.
        return super().layers(x) if self.training else self.run_layers(x).contiguous()


class _FusedStockKeypointHead(_FusedLayers):
    def layers(self, x: Tensor) -> Tensor:
        if self.training:
            return super().layers(x)
        x = self.run_layers(x)
        return F.interpolate(x, scale_factor=self.up_scale, mode="bilinear", align_corners=False).contiguous()


# method defined by one of these classes -> what takes its place
_MIXINS = (
    ((BasicStem,), "forward", _FusedStem),
    ((BasicBlock, BottleneckBlock), "forward", _FusedBlock),
    ((FPN,), "forward", _FusedFPN),
    ((StandardRPNHead,), "forward", _FusedRPNHead),
    ((FastRCNNConvFCHead,), "forward", _FusedBoxHead),
    ((MaskRCNNConvUpsampleHead, FCNMaskHead), "layers", _FusedMaskHead),
    ((HeatmapKeypointHead,), "layers", _FusedKeypointHead),
    ((KRCNNConvDeconvUpsampleHead,), "layers", _FusedStockKeypointHead),
)
