"""Changing how a module computes, but not what it is: its parameters, children, names and type checks stay."""

from functools import cache

from torch import nn

__all__ = ["defines", "restore", "stock_class", "swap"]


def swap(module: nn.Module, mixin: type, **attributes) -> None:
    """Puts the methods of ``mixin`` before those of the module's class, and sets attributes that it needs."""
    if isinstance(module, _Swapped):
        module.__class__ = _swapped_class((mixin, *type(module).mixins), type(module).stock_class)
    else:
        module.__class__ = _swapped_class((mixin,), type(module))
        module.__dict__["_swapped"] = {}
    module._swapped.update(attributes)


def restore(module: nn.Module) -> None:
    """Takes away whatever `swap` put before the module's class; other modules are left as they are."""
    if isinstance(module, _Swapped):
        module.__class__ = type(module).stock_class
        del module.__dict__["_swapped"]


def stock_class(module: nn.Module) -> type:
    """The class of a module without what `swap` put before it."""
    return type(module).stock_class if isinstance(module, _Swapped) else type(module)


def defines(module: nn.Module, owner: type, *methods: str) -> bool:
    """Whether ``module`` is an ``owner`` whose subclass, if it is of one, leaves these methods alone."""
    return isinstance(module, owner) and all(
        getattr(type(module), method) is getattr(owner, method) for method in methods
    )


class _Swapped:
    """What all swapped classes share. ``_swapped`` holds the attributes that the mixins need."""

    def __reduce_ex__(self, protocol):
        # The class is made on the fly, so pickle and copy would not find it by its name.
        return _new, (type(self).mixins, type(self).stock_class), self.__dict__


def _new(mixins, stock_class):
    cls = _swapped_class(mixins, stock_class)
    return cls.__new__(cls)


@cache
def _swapped_class(mixins, stock_class):
    attributes = {"mixins": mixins, "stock_class": stock_class, "__module__": stock_class.__module__}
    return type(stock_class.__name__, (_Swapped, *mixins, stock_class), attributes)
