"""bf16 for networks whose layers are not replaced, and float32 where it matters."""

import torch
from torch import Tensor

__all__ = ["AutocastForward", "AutocastLayers", "Float32Inputs", "to_float32"]


def to_float32(value):
    """A tensor, or the tensors of a list, tuple or dict, in float32; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: to_float32(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_float32(item) for item in value)
    return value


def _device_type(value):
    while not isinstance(value, Tensor):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return value.device.type


class AutocastForward:
    """Mixin for a network: bf16 autocast. Attribute: ``float32``, whether to give float32 in the end."""

    def forward(self, x, *args):
        if self.training:
            return super().forward(x, *args)
        with torch.autocast(_device_type(x), torch.bfloat16):
            x = super().forward(x, *args)
        return to_float32(x) if self._swapped["float32"] else x


class AutocastLayers:
    """Mixin for detectron2's mask and keypoint heads: bf16 autocast in ``layers``, whose result is float32."""

    def layers(self, x):
        if self.training:
            return super().layers(x)
        with torch.autocast(_device_type(x), torch.bfloat16):
            x = super().layers(x)
        return x.float().contiguous()


class Float32Inputs:
    """Mixin for what computes in float32 between networks that do not, such as a box predictor."""

    def forward(self, x, *args):
        return super().forward(x if self.training else to_float32(x), *args)
