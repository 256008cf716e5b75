"""int8 by our own calibration in ONNX files: QuantizeLinear and DequantizeLinear around the layers that it names, which
onnxruntime, OpenVINO and TensorRT compute in int8."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..accel import Int8Calibration, accelerate, replace_child
from ..accel.int8 import state_digest
from ..accel.norms import activation_of, foldable, folded
from ..ops.int8_pointwise import quantize_weight

__all__ = ["calibration_for", "quantize_layers", "store_int8_weights"]


def calibration_for(
    model: nn.Module, calibration: Sequence[Tensor] | Int8Calibration | str | os.PathLike
) -> Int8Calibration:
    """
    Args:
        model: a detector.
        calibration: one of `mrcnn_ext.accelerate`, the path of its file, or images (C, H, W) to make one with.

    Raises:
        OSError, ValueError: as `accelerate` with ``int8``.
    """
    if isinstance(calibration, (str, os.PathLike)):
        calibration = Int8Calibration.load(calibration)
    if not isinstance(calibration, Int8Calibration):
        inputs = [[{"image": image}] for image in calibration]
        accelerated: Any = accelerate(model, training=False, int8=inputs)
        return accelerated.acceleration.int8
    if calibration.digest != state_digest(model):
        raise ValueError("int8: the calibration was made for other weights; calibrate this model")
    return calibration


def quantize_layers(model: nn.Module, calibration: Int8Calibration) -> None:
    """Lets the layers of a model that a calibration names, in place, compute with inputs and weights that are rounded
    as it says: exact, but for the rounding of sums, to what int8 computes.

    Raises:
        ValueError: the model has no such layer, or one that is not supported.
    """
    for name, layer in calibration.layers.items():
        try:
            original = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"int8: the calibration has {name}, which is no layer of this model") from error
        parent, _, leaf = name.rpartition(".")
        replace_child(model.get_submodule(parent), leaf, _Quantized(original, layer.scale, layer.zero_point))


class _Quantized(nn.Module):
    """A convolution, a transposed one or a linear layer between QuantizeLinear and DequantizeLinear."""

    def __init__(self, original: Any, scale: float, zero_point: int):
        super().__init__()
        self.original: Any = original
        self.scale, self.zero_point = scale, zero_point
        if not isinstance(original, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            raise ValueError(f"int8: {type(original).__name__} cannot be exported in int8")
        norm = getattr(original, "norm", None)
        if (
            isinstance(original, nn.Conv2d)
            and norm is not None
            and foldable(norm)
            and activation_of(norm) is None
        ):
            weight, bias = folded(original.weight.detach(), original.bias, norm)
            self.original.weight = nn.Parameter(weight, requires_grad=False)
            self.original.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
            self.original.norm = None
        # Output channels first. Scales of transposed convolutions are of the cells, too: the largest serves all.
        self.axis = 1 if isinstance(original, nn.ConvTranspose2d) else 0
        rows = original.weight.detach().transpose(0, self.axis).flatten(1)
        values, scales = quantize_weight(rows)
        exact = (values * scales[:, None]).view(original.weight.transpose(0, self.axis).shape)
        with torch.no_grad():
            original.weight.copy_(exact.transpose(0, self.axis))
        self.register_buffer("weight_scale", scales)
        self.register_buffer("weight_zero", torch.zeros_like(scales, dtype=torch.int32))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("original"), name)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)
        weight = self.original.weight
        self.original._parameters["weight"] = torch.fake_quantize_per_channel_affine(
            weight, self.weight_scale, self.weight_zero, self.axis, -128, 127
        )
        try:
            return self.original(x)
        finally:
            self.original._parameters["weight"] = weight


def store_int8_weights(file: Any) -> None:
    """Puts weights as int8 into an ONNX model, in place, in which they are float32 and QuantizeLinear follows."""
    import onnx
    from onnx import numpy_helper

    constants = {value.name: value for value in file.graph.initializer}
    for node in file.graph.node:  # equal ones are there once, the others are copies of it
        if node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    for node in [node for node in file.graph.node if node.op_type == "QuantizeLinear"]:
        source = constants.get(node.input[0])
        scale, zero = (constants.get(name) for name in node.input[1:3])
        if source is None or scale is None or zero is None:
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        weight, scales = numpy_helper.to_array(source), numpy_helper.to_array(scale)
        shape = [1] * weight.ndim
        if scales.ndim:
            shape[axis] = -1
        values = (weight / scales.reshape(shape)).round().clip(-128, 127).astype("int8")
        file.graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        file.graph.node.remove(node)
        if not any(node.input[0] in other.input for other in file.graph.node):
            file.graph.initializer.remove(source)
    onnx.checker.check_model(file)
