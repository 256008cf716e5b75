"""bf16 or float16 for networks whose layers are not replaced, and float32 where it matters."""

import torch
from torch import Tensor, nn

from .fused_module import FusedModule, MethodStep

__all__ = [
    "AutocastMethod",
    "AutocastNetwork",
    "Float32Inputs",
    "Float32Network",
    "contiguous_float32",
    "is_float32_only",
    "register_float32_only",
    "to_float32",
]


def to_float32(value):
    """A tensor of a half precision, or those of a list, tuple or dict, in float32; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return type(value)({key: to_float32(item) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one
        return type(value)(*map(to_float32, value))
    if isinstance(value, (list, tuple)):
        return type(value)(to_float32(item) for item in value)
    return value


def contiguous_float32(value):
    """As `to_float32`, and a tensor by itself contiguous: heatmaps are read one by one, whatever layout the
    convolutions preferred."""
    value = to_float32(value)
    return value.contiguous() if isinstance(value, Tensor) else value


# Classes of modules that have no bf16 form.
_FLOAT32_ONLY: set[type] = set()


def register_float32_only(*classes: type) -> None:
    """Keeps networks with modules of these classes, or of subclasses, in float32."""
    _FLOAT32_ONLY.update(classes)


def is_float32_only(network: nn.Module) -> bool:
    """Whether a network has a module that has no bf16 form."""
    return any(isinstance(module, tuple(_FLOAT32_ONLY)) for module in network.modules())


def _autocast(network, dtype):
    parameter = next(network.parameters(), None)
    return torch.autocast("cpu" if parameter is None else parameter.device.type, dtype)


class AutocastNetwork(FusedModule):
    """A network under autocast.

    Args:
        original: the network.
        float32: whether to give float32 in the end.
        reason: why it is not fused, for `print`.
        dtype: to compute in, bfloat16 or float16.
    """

    def __init__(
        self,
        original: nn.Module,
        float32: bool = False,
        reason: str = "",
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(original)
        self.dtype = dtype
        self.float32 = float32
        self.reason = reason

    def infer(self, *args, **kwargs):
        with _autocast(self.original, self.dtype):
            result = self.original.forward(*args, **kwargs)
        return to_float32(result) if self.float32 else result

    def extra_repr(self) -> str:
        return f"{type(self.original).__name__}{', ' if self.reason else ''}{self.reason}"


class Float32Network(FusedModule):
    """A network that computes in float32 whatever it is given, among others that do not."""

    def infer(self, *args, **kwargs):
        parameter = next(self.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        with torch.autocast(device, enabled=False):
            return self.original.forward(*to_float32(args), **to_float32(kwargs))

    def extra_repr(self) -> str:
        return type(self.original).__name__


class AutocastMethod(MethodStep):
    """Autocast in one method of a module, ``layers`` of detectron2's heads; contiguous float32 results.

    Args:
        module, method: see `MethodStep`.
        dtype: to compute in, bfloat16 or float16.
    """

    def __init__(self, module: nn.Module, method: str, dtype: torch.dtype):
        super().__init__(module, method)
        self.dtype = dtype

    def __call__(self, *args, **kwargs):
        if self.module.training:
            return self.stock(*args, **kwargs)
        with _autocast(self.module, self.dtype):
            return contiguous_float32(self.stock(*args, **kwargs))


class Float32Inputs(MethodStep):
    """A method that takes its first argument in float32: of what computes in float32 between networks that do not."""

    def __call__(self, x, *args, **kwargs):
        return self.stock(x if self.module.training else to_float32(x), *args, **kwargs)
