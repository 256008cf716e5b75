"""Checkpoints of every kind, read without running what they may hold.

A pickle is a program. What the model zoos' pickles need is allowed by name, and nothing else; ``torch.load`` is held to
``weights_only``; safetensors hold no code.
"""

import os
import pickle
from typing import Any

import torch

from ..data.plain_pickle import HoldsCodeError, load_plain
from ..files import DamagedFileError, verify_archive
from .errors import UserError

__all__ = ["read_weights"]

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
        As it was saved; of safetensors a dict of tensors.

    Raises:
        UserError: the file holds code, is damaged, or no checkpoint.
    """
    path = os.fspath(path)
    try:
        if path.endswith(".pkl"):
            return _read_pickle(path, trust)
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file  # which timm installs

            return load_file(path)
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
