"""Fully sharded data parallelism (torch.distributed.fsdp.fully_shard): each process keeps a part of every weight,
gradient and state of the optimiser. Checkpoints and evaluation have the whole model."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.layers import CNNBlockBase
from detectron2.utils import comm
from torch import Tensor, nn

from .errors import UserError

__all__ = ["distribute_state", "is_sharded", "local", "shard", "whole", "whole_model"]

KEY = "SOLVER.SHARDED (train.sharded)"


def shard(model: nn.Module, unfit: dict[str, bool]) -> nn.Module:
    """Shards a model over all processes, in the place of DistributedDataParallel.

    The blocks of its backbone (of detectron2's ResNet or ViT, or a timm model's) are gathered one after the other when
    they compute, forward and backward; what else there is, heads and pyramid, is gathered for the whole step.

    Args:
        model: on its device; changed. Parameters keep their names.
        unfit: settings that cannot be together with it, by name, and whether they are set.

    Raises:
        UserError: there is but one process, or something unfit is set.
    """
    if comm.get_world_size() == 1:
        raise UserError(f"{KEY}: a single process has nothing to share; start several, or leave it out")
    if wrong := [name for name, is_set in unfit.items() if is_set]:
        raise UserError(f"{KEY} does not work together with {', '.join(wrong)}: switch one of them off")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(model.parameters()).device
    with torch.no_grad():
        # As DistributedDataParallel does: the main process's random weights are everybody's.
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, 0)
    mesh = init_device_mesh(device.type, (comm.get_world_size(),))
    for module in (*_blocks(model), model):
        sharded = fully_shard(module, mesh=mesh)
        if device.type == "cpu":  # gloo adds up, and has no mean
            sharded.set_force_sum_reduction_for_comms(True)
    model.register_load_state_dict_pre_hook(_distribute)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` has changed a model."""
    return isinstance(model, _known("torch.distributed.fsdp", "FSDPModule"))


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    part: Any = tensor
    return part.to_local() if _is_part(tensor) else tensor


def whole(state: Any) -> Any:
    """Nested values with every sharded tensor as a whole one on the CPU. In all processes at once."""
    if _is_part(state):
        return state.full_tensor().cpu()
    if type(state) in (dict, OrderedDict):
        result = type(state)((key, whole(value)) for key, value in state.items())
        if hasattr(state, "_metadata"):  # versions of a model's modules
            result._metadata = state._metadata
        return result
    if isinstance(state, list):
        return [whole(value) for value in state]
    return state


def whole_model(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """A copy that is not sharded, to evaluate: processes have different numbers of images, and do not wait for each
    other. In all processes at once.

    Args:
        build: gives a model of the same architecture.
    """
    weights = whole(model.state_dict())
    copy = build()
    copy.load_state_dict(weights)
    return copy.train(model.training)


def distribute_state(optimizer: torch.optim.Optimizer) -> None:
    """Whole tensors, as an optimiser has loaded them, become parts where their parameters are."""
    for parameter, state in optimizer.state.items():
        if not _is_part(parameter):
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and not _is_part(value) and value.shape == parameter.shape:
                state[key] = _part_of(value, parameter)


def _blocks(model) -> list[nn.Module]:
    """Those of the backbone; of a timm model, what is in its lists called "blocks"."""
    from detectron2.modeling.backbone import vit

    backbone = getattr(model, "backbone", model)
    found = [m for m in backbone.modules() if isinstance(m, (CNNBlockBase, vit.Block))]
    for name, module in backbone.named_modules():
        if name.rpartition(".")[2].startswith("blocks") and isinstance(
            module, (nn.Sequential, nn.ModuleList)
        ):
            found += [child for child in module.children() if child not in found]
    return [block for block in found if any(p.requires_grad for p in block.parameters())]


def _distribute(model, state_dict, prefix, *args):
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, parameter in own.items():
        value = state_dict.get(prefix + name)
        if _is_part(parameter) and isinstance(value, Tensor) and not _is_part(value):
            state_dict[prefix + name] = _part_of(value.to(parameter.device, parameter.dtype), parameter)


def _part_of(value, parameter):
    """A whole tensor, cut as a parameter is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


def _is_part(value) -> bool:
    return isinstance(value, _known("torch.distributed.tensor", "DTensor"))


def _known(module: str, name: str):
    """A class of a module that takes half a second to import: where it is not, there are no objects of it."""
    return getattr(sys.modules.get(module), name, ())
