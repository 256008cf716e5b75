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
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one
        return type(value)(*map(to_float32, value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_float32(item) for item in value)
    return value


def _autocast(network):
    parameter = next(network.parameters(), None)
    return torch.autocast("cpu" if parameter is None else parameter.device.type, torch.bfloat16)


class AutocastForward:
    """Mixin for a network: bf16 autocast. Attribute: ``float32``, whether to give float32 in the end."""

    def forward(self, x, *args, **kwargs):
        if self.training:
            return super().forward(x, *args, **kwargs)
        with _autocast(self):
            x = super().forward(x, *args, **kwargs)
        return to_float32(x) if self._swapped["float32"] else x


class AutocastLayers:
    """Mixin for detectron2's mask and keypoint heads: bf16 autocast in ``layers``, whose result is float32."""

    def layers(self, x):
        if self.training:
            return super().layers(x)
        with _autocast(self):
            x = super().layers(x)
        return x.float().contiguous()


class Float32Inputs:
    """Mixin for what computes in float32 between networks that do not, such as a box predictor."""

    def forward(self, x, *args, **kwargs):
        return super().forward(x if self.training else to_float32(x), *args, **kwargs)
