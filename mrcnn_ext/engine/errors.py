"""The errors that the tools show as one line, with a traceback only in programs."""

import difflib

__all__ = ["NonFiniteError", "UserError", "did_you_mean"]


class UserError(ValueError):
    """A config, command line, dataset or checkpoint is wrong; the message names it and says what is right."""


class NonFiniteError(FloatingPointError):
    """A loss, gradient or weight became infinite or NaN; the message says where and what to try."""


def did_you_mean(name, candidates):
    """Returns "; did you mean A or B?" for the candidates closest to ``name``, "" where none is close."""
    # A key is most often right in its last part and wrong in its section, or misspelt there in case alone.
    by_last = {}
    for candidate in candidates:
        by_last.setdefault(candidate.rpartition(".")[2].lower(), []).append(candidate)
    close = difflib.get_close_matches(name, candidates, n=3, cutoff=0.75)
    if not close:
        for last in difflib.get_close_matches(name.rpartition(".")[2].lower(), by_last, n=1, cutoff=0.75):
            close = by_last[last]
    return f"; did you mean {' or '.join(close[:3])}?" if close else ""
