"""How modules are fused: rules by class, methods of the modules themselves, and what to do without either."""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol, TypeGuard

from torch import nn

from .conv_classes import activation_after, is_known_conv, is_relu
from .fused_layers import FusedConv2d, FusedConvTranspose2d, FusedLinear
from .fused_module import FusedModule, defines, replace_child
from .policy import KernelPolicy

__all__ = ["fuse", "fuse_children", "has_rule", "rule_for"]

Rule = Callable[[nn.Module, KernelPolicy], "nn.Module | None"]
# class -> its rule and the methods that a subclass must have left alone for it
_RULES: dict[type, tuple[tuple[str, ...], Rule]] = {}


def rule_for(cls: type, methods: Sequence[str] = ("forward",)) -> Callable[[Rule], Rule]:
    """Registers how modules of a class are fused.

    The rule takes the module and a `KernelPolicy` and returns what is to take the module's place: a `FusedModule`
    made from it, the module itself with some of its children replaced (`fuse_children`) or methods replaced
    (`replace_method`), or None if it cannot be fused after all. It leaves parameters and buffers as they are.

    Args:
        cls: modules of it and of its subclasses.
        methods: that the rule replaces; a subclass with its own version of one is not covered.

    Example::

        @rule_for(MyBlock)
        def _(block, policy):
            return FusedMyBlock(block, policy)
    """

    def register(rule: Rule) -> Rule:
        _RULES[cls] = (tuple(methods), rule)
        return rule

    return register


def _rule(module):
    for cls in type(module).__mro__:
        methods, rule = _RULES.get(cls, ((), None))
        if rule is not None and defines(module, cls, *methods):
            return rule
    return None


def has_rule(module: nn.Module) -> bool:
    """Whether a module says how it is fused, or a rule does."""
    return isinstance(module, FusedModule) or _fuses_itself(module) or _rule(module) is not None


class _FusesItself(Protocol):
    def fuse(self, policy: KernelPolicy) -> nn.Module | None: ...


def _fuses_itself(module: object) -> TypeGuard[_FusesItself]:
    """Whether its class has a method ``fuse(policy)``; other libraries have methods of that name which take nothing."""
    method = getattr(type(module), "fuse", None)
    return inspect.isfunction(method) and list(inspect.signature(method).parameters)[1:] == ["policy"]


def fuse(module: nn.Module, policy: KernelPolicy, method: str = "forward") -> nn.Module | None:
    """What computes at inference what ``module`` does, faster, with the same parameters under the same names.

    In this order: the module's own ``fuse(policy)``, which returns what a rule returns; the rule of its class
    (`rule_for`); its operations as `torch.fx` sees them, of which convolutions, linear layers, normalisations,
    activations and additions become one where they follow each other.

    Args:
        module: in evaluation mode. Its children may be replaced.
        policy: what to compute with.
        method: what to follow with `torch.fx` instead of the forward; it is replaced in the module then.

    Returns:
        What is to take the module's place; None if nothing of it can be fused, and it is as it was.
    """
    if isinstance(module, FusedModule):
        return module
    if _fuses_itself(module):
        return module.fuse(policy)
    rule = _rule(module)
    if rule is not None:
        fused = rule(module, policy)
        if fused is not None:
            return fused
    from .traced import fuse_traced  # which asks this file for the rules of children

    return fuse_traced(module, policy, method)


def fuse_children(module: nn.Module, policy: KernelPolicy) -> list[str]:
    """Fuses each child by itself, and the children of those that cannot be; returns the names of those fused."""
    done = []
    for name, child in module.named_children():
        fused = fuse(child, policy)
        if fused is not None:
            replace_child(module, name, fused)
            done.append(name)
        else:
            done += [f"{name}.{inner}" for inner in fuse_children(child, policy)]
    return done


@rule_for(nn.Conv2d, methods=("_conv_forward",))
def _fuse_conv(conv, policy):
    if not is_known_conv(conv):
        return None
    activation = activation_after(conv)
    return (
        FusedConv2d(conv, policy, is_relu(activation)) if activation is None or is_relu(activation) else None
    )


@rule_for(nn.ConvTranspose2d)
def _fuse_transposed(layer, policy):
    return FusedConvTranspose2d(layer, policy)


@rule_for(nn.Linear)
def _fuse_linear(layer, policy):
    return FusedLinear(layer, policy)
