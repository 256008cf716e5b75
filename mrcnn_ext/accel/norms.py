"""Normalisations that become part of the convolution before them: at inference an affine map of each channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["activation_of", "foldable", "folded", "is_affine", "is_norm", "register_norm"]


@dataclass(frozen=True)
class _Norm:
    activation: Callable[[nn.Module], nn.Module | None] | None
    frozen: bool = False


# Exactly these classes: a subclass may do more than normalise. By name, so that no framework need be imported.
_NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm2d": _Norm(None),
    "torch.nn.modules.batchnorm.SyncBatchNorm": _Norm(None),
}


def register_norm(
    class_name: str,
    activation: Callable[[nn.Module], nn.Module | None] | None = None,
    frozen: bool = False,
) -> None:
    """Lets a class of normalisations be folded. It has ``weight`` and ``bias`` (C,) or None, ``running_mean`` and
    ``running_var`` (C,) and ``eps``, as ``nn.BatchNorm2d``.

    Args:
        class_name: its module and qualified name, "package.module.Class".
        activation: gives the activation module that an instance applies after normalising, None for none.
        frozen: whether instances normalise by their running statistics in training mode too.
    """
    _NORMS[class_name] = _Norm(activation, frozen)


def _find(norm):
    return _NORMS.get(f"{type(norm).__module__}.{type(norm).__qualname__}")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is of a class that may be folded."""
    return _find(module) is not None


def foldable(norm: nn.Module | None) -> bool:
    """Whether at inference the normalisation is an affine map of each channel."""
    return norm is None or (_find(norm) is not None and norm.running_mean is not None)


def is_affine(norm: nn.Module | None) -> bool:
    """Whether the normalisation, in the mode that it is in, is an affine map of each channel and nothing more."""
    if norm is None:
        return True
    found = _find(norm)
    return (
        found is not None
        and (found.frozen or not norm.training)
        and foldable(norm)
        and not activation_of(norm)
    )


def activation_of(norm: nn.Module) -> nn.Module | None:
    """The activation that a normalisation applies itself, None for none."""
    found = _find(norm)
    return None if found is None or found.activation is None else found.activation(norm)


def folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight (O, ...) and bias (O,) of a layer and of the foldable normalisation after it, None for none."""
    if norm is None:
        return weight, bias
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = (-norm.running_mean if bias is None else bias - norm.running_mean) * scale
    bias = shift if norm.bias is None else shift + norm.bias
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias
