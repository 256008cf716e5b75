"""Pickles of numpy arrays and plain values, read without running what they may hold."""

import codecs
import collections
import io
import pickle
from typing import IO, Any

import numpy as np

__all__ = ["HoldsCodeError", "load_plain"]


def load_plain(file: IO[bytes]) -> Any:
    """What ``pickle.load(file, encoding="latin1")`` gives for numpy arrays, numbers, strings and plain containers.

    Raises:
        HoldsCodeError: it names something else; nothing of it was run.
    """
    return _DataUnpickler(io.BytesIO(file.read()), encoding="latin1").load()


# What numpy calls for an array, a scalar, and the array of a pickle of protocol 5
_RECONSTRUCT, _SCALAR = np.ndarray((0,)).__reduce__()[0], np.float64(0).__reduce__()[0]
_FROM_BUFFER = np.ndarray((0,)).__reduce_ex__(5)[0]


class HoldsCodeError(Exception):
    """A pickle names something that is not data."""


class _DataUnpickler(pickle.Unpickler):
    """Numpy arrays, numbers, strings and plain containers; of Python 2 too."""

    # Python 2's names, and those of numpy before 2, are mapped to today's first.
    _ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("collections", "defaultdict"): collections.defaultdict,
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy.multiarray", "scalar"): _SCALAR,
        ("numpy.numeric", "_frombuffer"): _FROM_BUFFER,
        **{
            ("builtins", kind.__name__): kind
            for kind in (
                bool,
                bytearray,
                bytes,
                complex,
                dict,
                float,
                frozenset,
                int,
                list,
                range,
                set,
                slice,
            )
            + (str, tuple)
        },
    }

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module == "__builtin__":
            module = "builtins"
            name = {"unicode": "str", "long": "int", "xrange": "range"}.get(name, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "numpy.multiarray"
        if module in ("numpy.core.numeric", "numpy._core.numeric"):
            module = "numpy.numeric"
        allowed = self._ALLOWED.get((module, name))
        if allowed is None:
            raise HoldsCodeError(f"{module}.{name}")
        return allowed


def _encode(text, encoding="latin1"):
    """``_codecs.encode``, by which Python 3 pickles bytes for Python 2, without what else it can do."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise HoldsCodeError(f"_codecs.encode to {encoding!r}")
    return codecs.encode(text, encoding)
