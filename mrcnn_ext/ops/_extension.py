"""Finds and loads the compiled operators, and chooses what RoI pooling runs on."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

BACKENDS = ("compiled", "torchvision", "eager")
_VARIABLE = "MRCNN_EXT_BACKEND"
_HOW_TO_BUILD = (
    "To build it, install a C++17 compiler and run `pip install --no-build-isolation -e .` in the source "
    "tree of mrcnn_ext, with the torch that is to load it"
)


def _load(package: Path = Path(__file__).parent.parent) -> str | None:
    """Loads the ``_C_torch_<major>_<minor>*`` of the running torch; returns None, or why it could not be had.

    torch's C++ interface changes with every minor version: a library for another one could load and fail later.
    """
    running = tuple(torch.__version__.split(".")[:2])
    libraries = {}
    for path in sorted(package.glob("_C_torch_*")):
        if path.suffix in (".so", ".pyd", ".dylib"):
            libraries[tuple(path.name.split(".")[0].split("_")[3:])] = path
    if not libraries:
        return f"there is no compiled library _C_torch_*.so in {package}"
    if running not in libraries:
        built_for = " and ".join(".".join(minor) for minor in libraries)
        return (
            f"they are built for torch {built_for} and this is torch {torch.__version__} "
            f"(install a mrcnn_ext for torch {'.'.join(running)}, or one of those torch versions)"
        )
    try:
        torch.ops.load_library(libraries[running])
    except OSError as error:  # built for another platform, say
        return f"{libraries[running]} does not load: {error}"
    return None


def _check_name(name: str, origin: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{origin} must be one of {', '.join(BACKENDS)}; got {name!r}")


_from_environment = os.environ.get(_VARIABLE)
if _from_environment:
    _check_name(_from_environment, f"the environment variable {_VARIABLE}")

# A library that is not to be used is not loaded, so that the operator itself runs on the named backend.
_why_absent = (
    f"{_VARIABLE} is {_from_environment}" if _from_environment in ("torchvision", "eager") else _load()
)
if _from_environment == "compiled" and _why_absent is not None:
    raise RuntimeError(f"{_VARIABLE} is compiled, but {_why_absent}. {_HOW_TO_BUILD}")

default_backend = _from_environment or ("torchvision" if _why_absent else "compiled")
_forced: str | None = None


def is_available() -> bool:
    """True if the compiled operators are loaded."""
    return _why_absent is None


def require(what: str) -> None:
    """Raises NotImplementedError, with how to get them, if the compiled operators are not loaded."""
    if not is_available():
        raise NotImplementedError(f"{what} has no slower path, and {_why_absent}. {_HOW_TO_BUILD}")


def backend() -> str:
    """What RoI pooling runs on now: "compiled", "torchvision" or "eager"."""
    return _forced or default_backend


def is_forced() -> bool:
    """True within `use_backend`."""
    return _forced is not None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within it, `roi_align` and `roi_align_pyramid` run on the named backend. For tests and benchmarks.

    Code that is already scripted, traced or exported keeps the backend it has.

    Args:
        name: "compiled"; "torchvision", which covers the modes "avg" and "pool" of boxes of common sizes,
            the rest being eager; or "eager".

    Raises:
        ValueError: there is no such backend.
        RuntimeError: "compiled", and the extension is not built.
    """
    global _forced
    _check_name(name, "name")
    if name == "compiled" and not is_available():
        raise RuntimeError(f"the compiled operators were asked for, but {_why_absent}. {_HOW_TO_BUILD}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous


@cache
def warn_fallback(device: str, what: str = "RoI pooling") -> None:
    """Says, once per operator and type of device, that a slower path runs and how to get the compiled one."""
    if _from_environment in ("torchvision", "eager"):
        return  # as asked for
    if is_available():
        reason = f"the compiled operators were built without support for {device}"
    else:
        reason = f"the compiled operators are not available ({_why_absent})"
    warnings.warn(
        f"{what} on {device} runs on a slower path, because {reason}. {_HOW_TO_BUILD}"
        + (" on a machine with the CUDA toolkit." if device == "cuda" else "."),
        stacklevel=2,
    )
