"""Signals that ask a training to end: it finishes the iteration, writes a checkpoint, and ends."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

__all__ = ["Interruption", "forwarding_signals"]

# Of a terminal; of SLURM, Kubernetes and torchrun; of `sbatch --signal`; of a terminal that is closed.
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    if hasattr(signal, name)
)
_SAME = 1.0  # seconds within which a signal is the same one, sent by the terminal and by a parent


_catching: list["Interruption"] = []


def _mask(how):
    if _catching and threading.current_thread() is threading.main_thread():
        signal.pthread_sigmask(how, SIGNALS)


def _leave_fork_alone():
    """A fork, such as a worker of a pool, has no training to end and is told to end by a signal."""
    if _catching:
        for interruption in _catching:
            interruption._end_forks()
        _catching.clear()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# Python forgets the signals that a fork gets before its first line: a pool that ends such a worker would wait forever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _mask(signal.SIG_BLOCK),
        after_in_parent=lambda: _mask(signal.SIG_UNBLOCK),
        after_in_child=_leave_fork_alone,
    )


class Interruption:
    """Catches signals while a training runs.

    The first one is kept in ``number`` for the trainer to look at; a second one, later, ends the process as it would
    have without us.

    Attributes:
        number: of the signal that was caught; 0: none.
        immediate: raise `Interrupted` where the first one arrives.
    """

    def __init__(self):
        self.number = 0
        self.immediate = False
        self._since = 0.0
        self._previous: dict = {}

    @contextlib.contextmanager
    def catching(self) -> Iterator["Interruption"]:
        """Catches signals within it. Only a process's main thread can; in another one nothing is caught."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        for number in SIGNALS:
            # What is ignored stays so: nohup ignores SIGHUP.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._caught)
        _catching.append(self)
        try:
            yield self
        finally:
            _catching.remove(self)
            self._restore()

    def _caught(self, number, frame):
        if not self.number:
            self.number, self._since = number, time.monotonic()
            if self.immediate:
                raise Interrupted
        elif time.monotonic() - self._since > _SAME:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _end_forks(self):
        """In a fork, whose signals are blocked since before it was made: they end it, as they would without us."""
        self._restore()
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL):
                signal.signal(number, signal.SIG_DFL)

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Within it, a signal raises `Interrupted` at once, for work that can be done again."""
        self.immediate = True
        try:
            if self.number:
                raise Interrupted
            yield
        finally:
            self.immediate = False


class Interrupted(BaseException):
    """A signal arrived within `Interruption.breaking`."""


@contextlib.contextmanager
def forwarding_signals(pids: Callable) -> Iterator[None]:
    """Passes signals on to child processes, instead of ending before they do.

    Args:
        pids: gives the processes' ids.
    """

    def forward(number, frame):
        for pid in pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    previous = {
        number: signal.signal(number, forward)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
