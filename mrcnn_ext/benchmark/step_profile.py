"""What one training step of a model does, operator by operator: arithmetic, memory traffic, memory held."""

from dataclasses import dataclass

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["SavedTensors", "StepProfile", "profile_step"]


@dataclass(frozen=True)
class StepProfile:
    """
    Attributes:
        images: of the batch.
        forward: (N, 2) float64, for each operator that computes: floating-point operations of convolutions and matrix
            products (a multiply-add is two), and bytes of its inputs and outputs.
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


def profile_step(model: nn.Module, batch: list[dict]) -> StepProfile:
    """Runs a training step, without the optimiser's, and counts.

    Args:
        model: a detectron2 model; its gradients are cleared.
        batch: detectron2's training inputs.
    """
    was_training = model.training
    model.train()
    try:
        with EventStorage(0), SavedTensors(model) as saved:
            with _Operators() as forward:
                loss = sum(model(batch).values())
            with _Operators() as backward:
                loss.backward()
        trained = sum(p.numel() for p in model.parameters() if p.grad is not None)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    parameters = sum(p.numel() for p in model.parameters())
    return StepProfile(len(batch), forward.table, backward.table, parameters, trained, saved.bytes)


class _Operators(TorchDispatchMode):
    """Counts the operators that run within it."""

    def __init__(self):
        super().__init__()
        self._rows: list[tuple[float, float]] = []

    @property
    def table(self) -> Tensor:
        return torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 2)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.name()
        if not func.is_view and not name.startswith(("aten::empty", "aten::detach", "aten::_local_scalar")):
            count = flop_registry.get(func._overloadpacket)
            flops = 0 if count is None else count(*args, **kwargs, out_val=out)
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            self._rows.append((flops, sum(x.numel() * x.element_size() for x in tensors)))
        return out


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
