"""What one training step of a model does, operator by operator: arithmetic, memory traffic, memory held."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

__all__ = ["Operators", "SavedTensors", "StepProfile", "profile_step"]


@dataclass(frozen=True)
class StepProfile:
    """
    Attributes:
        images: of the batch.
        forward: (N, 3) float64, for each operator that computes: floating-point operations of convolutions and matrix
            products (a multiply-add is two); bytes of its inputs and outputs; and values that torchvision's RoI
            pooling gathers, or scatters in its backward pass, one by one.
        backward: the same of the backward pass.
        parameters: of the model.
        trained: parameters that get gradients.
        saved: bytes of the activations that the backward pass needs, for all images.
    """

    images: int
    forward: Tensor
    backward: Tensor
    parameters: int
    trained: int
    saved: float

    @property
    def flops(self) -> float:
        """Of the step, forward and backward."""
        return float(self.forward[:, 0].sum() + self.backward[:, 0].sum())


def profile_step(model: nn.Module, batch: list[dict], compute: bool = True) -> StepProfile:
    """Runs a training step, without the optimiser's, and counts.

    Args:
        model: a detectron2 model; its gradients are cleared.
        batch: detectron2's training inputs.
        compute: do all that is counted. Otherwise convolutions, matrix products and what is done to large maps give
            results of the right shapes and of arbitrary values, which takes a fraction of the time. Proposals are then
            anchors at random places, as random weights give them.
    """
    was_training = model.training
    model.train()
    try:
        with EventStorage(0), SavedTensors(model) as saved:
            with Operators(compute, random=True) as forward:
                loss = sum(model(batch).values())
            with Operators(compute, random=False) as backward:
                loss.backward()
        trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    parameters = sum(p.numel() for p in model.parameters())
    return StepProfile(len(batch), forward.table, backward.table, parameters, trained, saved.bytes)


class Operators(TorchDispatchMode):
    """Counts the operators that run within it.

    Args:
        compute: see `profile_step`.
        random: small results that are not computed are random, the same each time; zeros otherwise, and if they are
            large.

    Attributes:
        table: as `StepProfile` has them.
    """

    def __init__(self, compute: bool, random: bool):
        super().__init__()
        self._compute = compute
        self._generator = torch.Generator().manual_seed(0) if random else None
        self._rows: list[tuple[float, float, float]] = []

    @property
    def table(self) -> Tensor:
        return torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 3)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        out = None
        if not self._compute and not func.is_view:
            out = self._shaped(func, args, kwargs, has_flops=count is not None)
        if out is None:
            out = func(*args, **kwargs)
        name = func.name()
        if not func.is_view and not name.startswith(("aten::empty", "aten::detach", "aten::_local_scalar")):
            flops = 0 if count is None else count(*args, **kwargs, out_val=out)
            if name == "aten::convolution_backward":
                flops = _convolution_backward(*args)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            gathered = _GATHERED[name](args) if name in _GATHERED else 0
            self._rows.append((flops, sum(x.numel() * x.element_size() for x in tensors), gathered))
        return out

    def _shaped(self, func, args, kwargs, has_flops: bool):
        """A result of the operator that is not computed; None if it is to be."""
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not has_flops and not any(map(_is_map, tensors)):
            return None
        if _REAL & set(func.tags):
            return None
        if func._schema.is_mutable:
            changed = [
                x for x, argument in zip(args, func._schema.arguments, strict=False) if _is_written(argument)
            ]
            # What an in-place operator gives back, with arbitrary values as good as any.
            return (
                changed[0]
                if len(changed) == 1 and len(func._schema.returns) == 1 and _is_map(changed[0])
                else None
            )
        try:
            shapes = func(*tree_map_only(Tensor, _on_meta, args), **tree_map_only(Tensor, _on_meta, kwargs))
        except (NotImplementedError, RuntimeError):  # it has no shape function: it is computed
            return None
        results = [x for x in tree_leaves(shapes) if isinstance(x, Tensor)]
        if not has_flops and not any(map(_is_map, results)):
            return None
        return tree_map_only(Tensor, self._filled, shapes)

    def _filled(self, shape: Tensor) -> Tensor:
        size = 1 + sum((n - 1) * stride for n, stride in zip(shape.shape, shape.stride(), strict=True))
        size = size if shape.numel() else 0
        if self._generator is not None and shape.is_floating_point() and size <= _MAP:
            flat = 0.01 * torch.randn(size, generator=self._generator, dtype=shape.dtype)
        elif size == 0:
            flat = torch.zeros(0, dtype=shape.dtype)
        else:  # zeros, in pages that take no time before they are written
            flat = torch.frombuffer(mmap.mmap(-1, size * shape.element_size()), dtype=shape.dtype)
        return flat.as_strided(shape.shape, shape.stride())


_MAP = 2**18  # elements
# What gives shapes that depend on values, and what changes those of its input.
_REAL = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output, torch.Tag.inplace_view}


def _is_map(x) -> bool:
    """Whether it may be a large map of features, not boxes or scores, on which proposals and samples depend."""
    return isinstance(x, Tensor) and x.numel() > _MAP and x.dim() >= 3 and x.shape[-1] > 4


def _is_written(argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _on_meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _convolution_backward(gradient, inputs, weight, *args) -> float:
    """PyTorch's count takes a grouped convolution for a dense one. Each gradient takes what the forward pass takes."""
    transposed, wanted = args[4], args[7]
    return 2.0 * weight[0].numel() * (inputs if transposed else gradient).numel() * (wanted[0] + wanted[1])


def _taps_forward(args) -> float:
    """Of ``torchvision::roi_align(input, rois, scale, height, width, sampling_ratio, aligned)``."""
    features, rois, scale, height, width, ratio = args[:6]
    return _taps(rois, scale, height, width, ratio) * features.shape[1]


def _taps_backward(args) -> float:
    """Of ``torchvision::_roi_align_backward(grad, rois, scale, height, width, batch, channels, h, w, ratio, ...)``."""
    _, rois, scale, height, width, _, channels, _, _, ratio = args[:10]
    return _taps(rois, scale, height, width, ratio) * channels


def _taps(rois: Tensor, scale: float, height: int, width: int, ratio: int) -> float:
    """Four of each sample of each bin: He et al., 2017, figure 3."""
    samples = torch.full((len(rois),), float(ratio**2))
    if ratio <= 0:
        x0, y0, x1, y1 = (rois[:, 1:].double() * scale).unbind(1)
        samples = ((x1 - x0) / width).ceil() * ((y1 - y0) / height).ceil()
    return 4.0 * height * width * float(samples.sum())


_GATHERED: dict[str, Callable] = {
    "torchvision::roi_align": _taps_forward,
    "torchvision::_roi_align_backward": _taps_backward,
}


class SavedTensors:
    """Sums up the bytes that are saved for the backward pass within it; what tensors share counts once.

    Args:
        model: whose parameters and buffers do not count.
    """

    def __init__(self, model: nn.Module):
        self._known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
        self._storages: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    @property
    def bytes(self) -> float:
        return float(sum(self._storages.values()))

    def _pack(self, x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._known:
            # It lives as long as the graph: no other takes its place meanwhile.
            self._storages[storage.data_ptr()] = storage.nbytes()
        return x.detach() if x.is_leaf and x.requires_grad else x

    def __enter__(self):
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        return self._hooks.__exit__(*error)
