"""What decides a model's predictions, in short strings that are equal in every process."""

import functools
import hashlib
import itertools
import json

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["digest", "model_identity", "settings"]

_DEPTH = 6  # of objects within objects
_NOT_SETTINGS = {
    "training",
    "acceleration",
    "input_args",
}  # the last: of an augmentation, once it has been used


def model_identity(model: nn.Module) -> dict[str, str]:
    """Digests of the weights, and of the structure with every setting such as a score threshold."""
    weights = hashlib.sha256()
    # More than the state dict: the anchors, too.
    for name, value in itertools.chain(model.named_parameters(), model.named_buffers()):
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    modules = {name: [type(module).__qualname__, _own(module)] for name, module in model.named_modules()}
    return {"model": digest(modules), "weights": weights.hexdigest()[:16]}


def _own(module):
    """Settings of a module itself; its parts and parameters are counted elsewhere."""
    return settings(_public(module))


def _public(value):
    attributes = getattr(value, "__dict__", {}).items()
    return {key: item for key, item in attributes if not key.startswith("_") and key not in _NOT_SETTINGS}


def settings(value, depth: int = _DEPTH):
    """An object as plain values: what it is and what its public attributes are."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (nn.Module, nn.Parameter)):
        return type(value).__qualname__
    if isinstance(value, (Tensor, np.ndarray)):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): settings(item, depth) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings(item, depth) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, functools.partial):
        return [settings(item, depth) for item in (value.func, value.args, value.keywords)]
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return [type(value).__qualname__, settings(_public(value), depth - 1) if depth else {}]


def digest(value) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
