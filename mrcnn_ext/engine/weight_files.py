"""Checkpoints of every kind, read without running what they may hold.

A pickle is a program. What the model zoos' pickles need is allowed by name, and nothing else; ``torch.load`` is held to
``weights_only``; safetensors hold no code.
"""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ..data.plain_pickle import HoldsCodeError, load_plain
from ..files import DamagedFileError, replacing, verify_archive
from .errors import UserError

__all__ = ["ABOUT", "AVERAGED", "export_weights", "read_weights"]

ABOUT = "about"  # key in a checkpoint: what it says of itself
AVERAGED = "averaged_model"  # the same: the moving average of the weights
_METADATA = "mrcnn_ext"  # key in the metadata of safetensors: the same as under ABOUT, as yaml

HOW_TO_TRUST = (
    "if you know where it comes from and trust it, read it with --trust-files (Checkpointer(trust=True))"
)


def read_weights(path: str | os.PathLike, trust: bool = False) -> Any:
    """What a checkpoint file holds.

    Args:
        path: a local file. By its suffix: ``.pkl`` is a pickle of numpy arrays, as in the model zoos of Detectron and
            detectron2; ``.safetensors`` that; anything else is read by ``torch.load``, archives after they were
            verified by their checksums.
        trust: run whatever code a pickle holds, and read archives that do not match their checksums. Without it
            nothing of the file is run.

    Returns:
        As it was saved; of safetensors a dict of tensors, of those of `export_weights` ``model`` and ``about``.

    Raises:
        UserError: the file holds code, is damaged, or no checkpoint.
    """
    path = os.fspath(path)
    try:
        if path.endswith(".pkl"):
            return _read_pickle(path, trust)
        if path.endswith(".safetensors"):
            return _read_safetensors(path)
        if not trust:
            verify_archive(path)
        with open(path, "rb") as file:
            is_pickle = file.read(2) in (b"\x80\x03", b"\x80\x04", b"\x80\x05")  # none of torch.save's own
        return (
            _read_pickle(path, trust)
            if is_pickle
            else torch.load(path, map_location="cpu", weights_only=not trust)
        )
    except (UserError, FileNotFoundError):
        raise
    except DamagedFileError as error:
        raise UserError(f"{path}: {error}. Take a copy that is whole, or an older checkpoint") from error
    # What decoders raise for a file that is cut short, or something else altogether.
    except Exception as error:
        if (name := _refused_by_torch(error)) is not None:
            raise UserError(_holds_code(path, name)) from error
        raise UserError(f"{path}: not a checkpoint, or damaged ({type(error).__name__})") from error


def export_weights(source: str | os.PathLike, output: str | os.PathLike, trust: bool = False) -> int:
    """Writes the weights of a checkpoint as safetensors, without the state of its training. What the checkpoint says of
    itself, its config and the names of its classes and keypoints, goes into the file's metadata, so that it needs no
    more than the checkpoint does: for ``MODEL.WEIGHTS``, evaluation, prediction, export.

    Args:
        source: a checkpoint, as of `read_weights`. Of one with a moving average of the weights that is taken.
        output: to write; it ends with ".safetensors".
        trust: as of `read_weights`.

    Returns:
        the number of tensors.

    Raises:
        UserError: ``source`` cannot be read, or holds something else than tensors by name.
        OSError: ``output`` cannot be written.
    """
    from safetensors.torch import save  # which timm installs

    content = read_weights(source, trust)
    content = content if isinstance(content, Mapping) else {}
    if content.get("matching_heuristics"):
        raise UserError(
            f"{os.fspath(source)}: its names are matched with a model's by likeness, which a .safetensors file cannot "
            "ask for: export the checkpoint of a model that has loaded it"
        )
    weights = content.get(AVERAGED) or content.get("model", content)
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_array, weights.values())):
        raise UserError(f"{os.fspath(source)}: not a checkpoint: it holds no tensors by their names")
    # Each in memory of its own, which the format wants.
    tensors = {str(name): torch.as_tensor(value).detach().clone() for name, value in weights.items()}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {"format": "pt"}
    if isinstance(about := content.get(ABOUT), Mapping):
        metadata[_METADATA] = yaml.safe_dump(dict(about))
    with replacing(output) as file:
        file.write(save(tensors, metadata))
    return len(tensors)


def _is_array(value):
    return isinstance(value, (Tensor, np.ndarray))


def _read_safetensors(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        about = (file.metadata() or {}).get(_METADATA)
    return tensors if about is None else {"model": tensors, ABOUT: yaml.safe_load(about)}


def _read_pickle(path, trust):
    with open(path, "rb") as file:
        if trust:
            return pickle.load(file, encoding="latin1")
        try:
            return load_plain(file)
        except HoldsCodeError as error:
            raise UserError(_holds_code(path, error)) from None


def _refused_by_torch(error):
    """Name of what ``torch.load`` has refused; None if it failed for something else."""
    message = str(error)
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class ", "Trying to load unsupported GLOBAL "):
        if mark in message:
            return message.partition(mark)[2].split()[0]
    return None


def _holds_code(path, name):
    return (
        f"{path} holds code ({name}) besides weights, which would run when it is read; it was not read. To be read "
        f"safely it must hold tensors, numpy arrays and plain values only; {HOW_TO_TRUST}"
    )
