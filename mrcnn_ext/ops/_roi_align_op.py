"""The RoI pooling operators as PyTorch sees them: schemas, kernels in Python, fake kernels, autograd.

``mrcnn_ext::roi_align`` is the compiled operator or, where that is absent, this same schema over Python
kernels, so that scripted, traced and exported models name one operator everywhere. ``roi_align_eager`` and
``roi_align_torchvision`` are the Python kernels by themselves. Under autocast all of them run in the dtype of
the features they get: nothing is cast, boxes least of all.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from . import _extension, roi_align_eager, roi_align_torchvision
from .roi_options import RoIOptions

_ARGUMENTS = (
    "Tensor[] features, Tensor rois, float[] spatial_scales, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned, str mode, float canonical_box_size, int canonical_level"
)
_PYTHON_KERNELS = {"torchvision": roi_align_torchvision, "eager": roi_align_eager}


def _rois(args) -> Tensor:
    """The RoIs among the arguments of an operator, forward or backward."""
    return args[1] if isinstance(args[1], Tensor) else args[2]


def _falling_back(kernel):
    def run(*args):
        _extension.warn_fallback(_rois(args).device.type)
        return kernel(*args)

    return run


# Kept alive: the registrations end with the Library object.
_library = Library("mrcnn_ext", "FRAGMENT")


def _define(name: str) -> None:
    _library.define(f"{name}({_ARGUMENTS}) -> Tensor")
    _library.define(f"{name}_backward(Tensor grad, {_ARGUMENTS}, bool rois_need_grad) -> (Tensor[], Tensor)")


def _with_options(kernel):
    """A kernel that takes `RoIOptions`, as the operator calls it, and without autocast."""
    count = len(RoIOptions._fields)

    def run(*args):
        first = 2 if isinstance(args[1], Tensor) else 3  # a backward's begin with the gradient
        options = RoIOptions(*args[first : first + count])
        with torch.autocast(_rois(args).device.type, enabled=False):
            return kernel(*args[:first], options, *args[first + count :])

    return run


def _implement(name: str, forward, backward) -> None:
    # For every device; a compiled kernel of a device goes before.
    _library.impl(name, _with_options(forward), "CompositeExplicitAutograd")
    _library.impl(f"{name}_backward", _with_options(backward), "CompositeExplicitAutograd")


if not _extension.is_available():
    _define("roi_align")
_default = _PYTHON_KERNELS.get(_extension.default_backend, roi_align_torchvision)
_implement("roi_align", _falling_back(_default.roi_align), _falling_back(_default.roi_align_backward))
for _backend, _kernels in _PYTHON_KERNELS.items():
    _define(f"roi_align_{_backend}")
    _implement(f"roi_align_{_backend}", _kernels.roi_align, _kernels.roi_align_backward)


def _fake(features: list[Tensor], rois: Tensor, *options) -> Tensor:
    x = features[0]
    shape = (rois.shape[0], x.shape[1], *RoIOptions(*options).bins)
    return roi_align_eager.empty_like_layout(x, shape, x.dtype)


def _fake_backward(
    grad: Tensor, features: list[Tensor], rois: Tensor, *options
) -> tuple[list[Tensor], Tensor]:
    rois_need_grad = options[-1]
    feature_grads = [roi_align_eager.empty_like_layout(features[0], f.shape, f.dtype) for f in features]
    return feature_grads, rois.new_empty((rois.shape[0] if rois_need_grad else 0, 5))


def _save(ctx, inputs, output) -> None:
    features, rois, *options = inputs
    ctx.save_for_backward(rois, *features)
    ctx.options = RoIOptions(*options)


def _save_backward(ctx, inputs, output) -> None:
    grad, features, rois, *options, rois_need_grad = inputs
    ctx.save_for_backward(rois)
    ctx.feature_likes = [(f.shape, f.dtype, f.device) for f in features]
    ctx.options = RoIOptions(*options)
    ctx.rois_need_grad = rois_need_grad


_LINEAR_MODES = roi_align_eager.AVERAGE_MODES


def _register_autograd(name: str) -> None:
    forward_op = getattr(torch.ops.mrcnn_ext, name)
    backward_op = getattr(torch.ops.mrcnn_ext, f"{name}_backward")

    def backward(ctx, grad):
        rois, *features = ctx.saved_tensors
        mode = ctx.options.mode
        rois_need_grad = mode == "exact" and ctx.needs_input_grad[1]
        feature_grads, rois_grad = backward_op(grad, features, rois, *ctx.options, rois_need_grad)
        return feature_grads, rois_grad if rois_need_grad else None, *[None] * len(ctx.options)

    def double_backward(ctx, feature_grad_grads, rois_grad_grad):
        mode = ctx.options.mode
        if mode not in _LINEAR_MODES or ctx.rois_need_grad:
            what = "with gradients of the boxes" if mode in _LINEAR_MODES else "of a max mode"
            raise NotImplementedError(
                f'roi_align: the double backward of mode "{mode}" {what} is not implemented'
            )
        (rois,) = ctx.saved_tensors
        grads = [
            torch.zeros(shape, dtype=dtype, device=device) if g is None else g
            for g, (shape, dtype, device) in zip(feature_grad_grads, ctx.feature_likes, strict=True)
        ]
        # The first backward is linear in its gradient, with the forward as its transpose.
        grad = forward_op(grads, rois, *ctx.options)
        return grad, [None] * len(grads), None, *[None] * (len(ctx.options) + 1)

    torch.library.register_autograd(f"mrcnn_ext::{name}", backward, setup_context=_save)
    torch.library.register_autograd(
        f"mrcnn_ext::{name}_backward", double_backward, setup_context=_save_backward
    )


for _name in ("roi_align", *(f"roi_align_{backend}" for backend in _PYTHON_KERNELS)):
    torch.library.register_fake(f"mrcnn_ext::{_name}", _fake)
    torch.library.register_fake(f"mrcnn_ext::{_name}_backward", _fake_backward)
    _register_autograd(_name)


def _fake_max(features: list[Tensor], rois: Tensor, *options) -> tuple[Tensor, Tensor]:
    pooled = _fake(features, rois, *options)
    return pooled, torch.empty_like(pooled, dtype=torch.int16)


def _fake_max_backward(
    grad: Tensor, codes: Tensor, features: list[Tensor], rois: Tensor, *options
) -> list[Tensor]:
    return [roi_align_eager.empty_like_layout(features[0], f.shape, f.dtype) for f in features]


def _save_max(ctx, inputs, output) -> None:
    features, rois, *options = inputs
    codes = output[1]
    ctx.mark_non_differentiable(codes)
    ctx.save_for_backward(rois, codes, *features)
    ctx.options = RoIOptions(*options)


def _backward_of_max(ctx, grad, _):
    rois, codes, *features = ctx.saved_tensors
    grads = torch.ops.mrcnn_ext.roi_max_pool_backward(grad, codes, features, rois, *ctx.options)
    return grads, None, *[None] * len(ctx.options)


def _double_backward_of_max(ctx, *grads):
    raise NotImplementedError(
        f'roi_align: the double backward of mode "{ctx.mode}" of a max mode is not implemented'
    )


def _save_mode(ctx, inputs, output) -> None:
    ctx.mode = RoIOptions(*inputs[4:]).mode


if _extension.is_available():
    torch.library.register_fake("mrcnn_ext::roi_max_pool", _fake_max)
    torch.library.register_fake("mrcnn_ext::roi_max_pool_backward", _fake_max_backward)
    torch.library.register_autograd("mrcnn_ext::roi_max_pool", _backward_of_max, setup_context=_save_max)
    torch.library.register_autograd(
        "mrcnn_ext::roi_max_pool_backward", _double_backward_of_max, setup_context=_save_mode
    )

_default_op = torch.ops.mrcnn_ext.roi_align
_forced_ops = {
    "compiled": torch.ops.mrcnn_ext.roi_align,
    "torchvision": torch.ops.mrcnn_ext.roi_align_torchvision,
    "eager": torch.ops.mrcnn_ext.roi_align_eager,
}


def operator():
    """The operator that pools now."""
    return _forced_ops[_extension.backend()] if _extension.is_forced() else _default_op


class _Internals(NamedTuple):
    """What `_CompiledPool` needs of PyTorch and has no public name."""

    below_autograd: Callable[[], AbstractContextManager]
    num_dispatch_modes: Callable[[], int]
    has_function_mode: Callable[[], bool]
    transform: Callable[[], Any]


# For a torch that lacks one: somebody may look at every call, so that all go the public way.
_UNKNOWN = _Internals(nullcontext, lambda: 1, lambda: True, lambda: None)


@cache
def _internals() -> _Internals:
    """Those of this torch; `_UNKNOWN`, after a warning, if a name is gone."""
    try:
        return _Internals(
            torch._C._AutoDispatchBelowAutograd,
            torch._C._len_torch_dispatch_stack,
            torch._C._is_torch_function_mode_enabled,
            torch._C._functorch.peek_interpreter_stack,
        )
    except AttributeError as error:
        warnings.warn(
            f"RoI pooling gives the same results, but takes longer a call: torch {torch.__version__} lacks a name that "
            f"the shorter way needs ({error}). A later mrcnn_ext may know this torch",
            stacklevel=2,
        )
        return _UNKNOWN


class _CompiledPool(torch.autograd.Function):
    """The compiled operator and its backward, called by themselves.

    What `register_autograd` does for every caller there may be costs as much time as the kernels on a GPU: of an
    ordinary call it takes a third, of a backward a half.
    """

    @staticmethod
    def forward(ctx, options: RoIOptions, rois: Tensor, *features: Tensor) -> Tensor:
        ctx.options = options
        ctx.save_for_backward(rois, *features)
        return _pool_without_autograd(features, rois, options)

    @staticmethod
    def backward(ctx, grad):
        rois, *features = ctx.saved_tensors
        if torch.is_grad_enabled() or not _is_ordinary(grad):  # the backward is differentiated or traced
            grads, _ = torch.ops.mrcnn_ext.roi_align_backward(grad, features, rois, *ctx.options, False)
        else:
            with _internals().below_autograd():
                grads, _ = _default_backward(grad, features, rois, *ctx.options, False)
        return None, None, *grads


_default_backward = torch.ops.mrcnn_ext.roi_align_backward.default


def _pool_without_autograd(features, rois: Tensor, options: RoIOptions) -> Tensor:
    with _internals().below_autograd():
        return _default_op.default(features, rois, *options)


def _is_ordinary(*tensors: Tensor) -> bool:
    """True if the tensors are no subclass's and no tracer, mode or transform looks at operators."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and (internals := _internals()).num_dispatch_modes() == 0
        and not internals.has_function_mode()
        and internals.transform() is None
        and all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )


def pool(features: list[Tensor], rois: Tensor, options: RoIOptions) -> Tensor:
    """Pools by that operator or, where a gradient of a maximum is going to be asked for, by the one that keeps where
    the maxima are."""
    if _extension.backend() != "compiled":
        return operator()(features, rois, *options)
    differentiated = torch.is_grad_enabled() and any(level.requires_grad for level in features)
    if differentiated and options.mode in roi_align_eager.MAX_MODES and features[0].device.type == "cpu":
        return torch.ops.mrcnn_ext.roi_max_pool(features, rois, *options)[0]
    if (torch.is_grad_enabled() and rois.requires_grad) or not _is_ordinary(rois, *features):
        return operator()(features, rois, *options)
    if differentiated:
        return _CompiledPool.apply(options, rois, *features)
    return _pool_without_autograd(features, rois, options)
