"""What every fused module is: a module of its own that stands in for another one and shares its state."""

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = [
    "FusedModule",
    "MethodStep",
    "PreparedWeights",
    "defines",
    "original_of",
    "replace_child",
    "replace_method",
    "restore",
    "version_of",
]

# What a fused module and its original are to have in common: the very dictionaries, so that moving, loading or
# replacing a parameter of one does it for the other.
_SHARED = (
    "_parameters",
    "_buffers",
    "_non_persistent_buffers_set",
    "_modules",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class FusedModule(nn.Module):
    """Stands in for a module: computes at inference what it computes, faster.

    Its parameters, buffers and children are the original's own, under the same names, so that a ``state_dict`` of
    either loads into the other; in training mode it runs the original's forward. Attributes that it does not have
    itself are the original's. A subclass defines ``infer``.

    Args:
        original: the module to stand in for. It must not be used elsewhere in the model.
    """

    def __init__(self, original: nn.Module):
        nn.Module.__init__(self)  # whatever else a subclass inherits, it takes from the original
        # In the __dict__: not a child, whose names would be other ones.
        self.__dict__["original"] = original
        for name in _SHARED:
            if name in original.__dict__:
                self.__dict__[name] = original.__dict__[name]
        self.__dict__["_version"] = original._version
        self.training = original.training

    @classmethod
    def from_module(cls, module: nn.Module, *args, **kwargs) -> "FusedModule":
        """Makes one from the module it stands in for; the other arguments are the class's."""
        return cls(module, *args, **kwargs)

    def infer(self, *args, **kwargs):
        """What `forward` does in evaluation mode."""
        raise NotImplementedError

    def forward(self, *args, **kwargs):
        if self.training:
            return self.original.forward(*args, **kwargs)
        return self.infer(*args, **kwargs)

    def train(self, mode: bool = True) -> "FusedModule":
        # The original may keep some of its children in evaluation mode, as frozen stages are.
        self.original.train(mode)
        self.training = self.original.training
        return self

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("original")  # None while it is being unpickled
            if original is None or name.startswith("__"):
                raise
            return getattr(original, name)

    def _save_to_state_dict(self, *args):
        self.original._save_to_state_dict(*args)

    def _load_from_state_dict(self, *args):
        # Its renames of older checkpoints included.
        self.original._load_from_state_dict(*args)

    def extra_repr(self) -> str:
        return self.original.extra_repr()


class MethodStep:
    """Takes the place of one method of one module, see `replace_method`. A subclass defines ``__call__``; ``stock``
    calls the method as the module's class has it.

    Attributes:
        module: whose method it is.
        method: name of the method.
    """

    def __init__(self, module: nn.Module, method: str):
        self.module = module
        self.method = method

    def stock(self, *args, **kwargs):
        return getattr(type(self.module), self.method)(self.module, *args, **kwargs)


def replace_method(step: MethodStep) -> None:
    """Lets ``step.module`` call ``step`` wherever it, or somebody else, calls its method of that name: an attribute
    of the module goes before those of its class. Copies and pickles of the module keep their copy of the step."""
    setattr(step.module, step.method, step)


def restore(model: nn.Module) -> nn.Module:
    """Takes everything fused out of a model, in place.

    Returns:
        The model, or its original where it is a `FusedModule` itself.
    """
    model = model.original if isinstance(model, FusedModule) else model
    for name, value in list(model.__dict__.items()):
        if isinstance(value, MethodStep):
            delattr(model, name)
    for name, child in list(model._modules.items()):
        if child is not None:
            replace_child(model, name, restore(child))
    return model


def replace_child(parent: nn.Module, name: str, child: nn.Module) -> None:
    """Puts a module in the place of a child of ``parent``, also where ``parent`` keeps the child in a list, as
    detectron2's FPN and ResNet do."""
    parent = parent.original if isinstance(parent, FusedModule) else parent
    before = parent._modules[name]
    if before is child:
        return
    parent._modules[name] = child
    for value in parent.__dict__.values():
        if type(value) is list:
            value[:] = [child if item is before else item for item in value]


def original_of(module: nn.Module | None) -> nn.Module | None:
    """What a fused module stands in for; any other module itself."""
    return module.original if isinstance(module, FusedModule) else module


def defines(module: nn.Module, owner: type, *methods: str) -> bool:
    """Whether ``module`` is an ``owner`` whose subclass, if it is of one, leaves these methods alone."""
    return isinstance(module, owner) and all(
        getattr(type(module), method) is getattr(owner, method) for method in methods
    )


class PreparedWeights:
    """What was made of some tensors for a kernel, as long as they have not changed. Copies and pickles are empty."""

    def __init__(self):
        self._made = ((), None, None)  # sources, stamp, value: at once, for the sake of other threads

    def get(self, sources: tuple[Tensor | None, ...], setting, make: Callable):
        """``make()``, or what it returned last if neither a source nor ``setting`` has changed since.

        Args:
            sources: the parameters and buffers that ``make`` reads; changes through ``.data`` go unnoticed.
            setting: whatever else the result depends on, comparable.
            make: without arguments; runs without autograd, autocast and inference mode.
        """
        tensors = tuple(source for source in sources if source is not None)
        stamp = (setting, [(tensor.data_ptr(), version_of(tensor)) for tensor in tensors])
        made_of, made_at, value = self._made
        same = len(tensors) == len(made_of) and all(map(operator.is_, tensors, made_of))
        if not same or stamp != made_at:
            # Not as tensors of inference mode: calls outside of it are to have them too.
            outside = torch.inference_mode(False), torch.no_grad()
            with outside[0], outside[1], torch.autocast(tensors[0].device.type, enabled=False):
                value = make()
            self._made = (tensors, stamp, value)
        return value

    def __reduce__(self):
        return PreparedWeights, ()


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version  # those of inference mode have none
