"""Counts on the CPU what would wait for the device on CUDA: `Synchronizations`."""

import traceback
from collections import Counter
from pathlib import Path

import torch
import torchvision  # noqa: F401  (its operators)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
# Operations whose results have a shape, or are numbers, that only the device knows.
WAITING = {
    ATEN._local_scalar_dense.default,
    ATEN.is_nonzero.default,
    ATEN.nonzero.default,
    ATEN.masked_select.default,
    ATEN._unique2.default,
    ATEN._unique.default,
    ATEN.unique_consecutive.default,
    ATEN.unique_dim.default,
    ATEN.bincount.default,
    ATEN.equal.default,
    torch.ops.torchvision.nms.default,
}
INDEXING = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default}
# Methods of tensors that read their values on the host, and functions that copy numbers of the host to the device.
READING = {
    *(
        Tensor.tolist,
        Tensor.numpy,
        Tensor.cpu,
        Tensor.item,
        Tensor.__bool__,
        Tensor.__int__,
        Tensor.__float__,
    ),
    *(Tensor.__index__, Tensor.__array__, Tensor.__contains__),
}
PACKAGE = Path(__file__).resolve().parents[1]


class _OfHost(TorchFunctionMode):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in READING and self.counts.on_device(args):
            self.counts.add(func.__name__)
        copies = func is Tensor.new_tensor or (
            func in (torch.tensor, torch.as_tensor)
            and kwargs.get("device") is not None
            and not isinstance(args[0] if args else None, Tensor)
        )
        if func in (Tensor.__getitem__, Tensor.__setitem__) and self.counts.on_device(args[0]):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            copies = any(isinstance(of, list) for of in index)
        if copies:
            self.counts.add(func.__name__)
        return func(*args, **kwargs)


class Synchronizations(TorchDispatchMode):
    """Within it, what would make the host wait is counted by where it happens. Tensors on the device are those given,
    and all that is computed of them; others are taken for the host's.

    Args:
        tensors: what is on the device: parameters, images.

    Attributes:
        counts: "operation at file:line" -> how often.
    """

    def __init__(self, tensors):
        super().__init__()
        self.counts = Counter()
        for tensor in tensors:
            tensor._on_device = True
        self._of_host = _OfHost(self)

    def on_device(self, values):
        return any(isinstance(v, Tensor) and getattr(v, "_on_device", False) for v in tree_leaves(values))

    def add(self, name):
        frames = [f for f in traceback.extract_stack() if "synchronizations.py" not in f.filename]
        ours = next((f for f in reversed(frames) if "/torch/" not in f.filename), frames[-1])
        place = Path(ours.filename)
        in_package = place.is_relative_to(PACKAGE) and "site-packages" not in place.parts
        place = place.relative_to(PACKAGE) if in_package else place.name
        self.counts[f"{name} at {place}:{ours.lineno} {ours.line}"] += 1

    def __enter__(self):
        self._of_host.__enter__()
        return super().__enter__()

    def __exit__(self, *args):
        super().__exit__(*args)
        self._of_host.__exit__(*args)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_device = self.on_device((args, kwargs))
        if on_device and self._waits(func, args, kwargs):
            self.add(func.__name__)
        result = func(*args, **kwargs)
        if on_device:
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    value._on_device = True
        return result

    def _waits(self, func, args, kwargs):
        if func in INDEXING:
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if func in (ATEN.repeat_interleave.Tensor, ATEN.repeat_interleave.self_Tensor):
            return kwargs.get("output_size") is None
        return func in WAITING
