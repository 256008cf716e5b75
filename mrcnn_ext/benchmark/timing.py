"""Times of several functions that are to be compared with each other."""

import statistics
import time
from collections.abc import Callable

import torch


def _nothing() -> None:
    pass


def _seconds(function: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def race(
    functions: dict[str, Callable],
    device: torch.device,
    budget: float = 2.0,
    rounds: tuple[int, int] = (3, 50),
    before: dict[str, Callable] | None = None,
) -> dict[str, float]:
    """Median seconds of each function; see `race_times`."""
    times = race_times(functions, device, budget, rounds, before)
    return {name: statistics.median(values) for name, values in times.items()}


def race_times(
    functions: dict[str, Callable],
    device: torch.device,
    budget: float = 2.0,
    rounds: tuple[int, int] = (3, 50),
    before: dict[str, Callable] | None = None,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each run of each function. They take turns, so that a slow phase of the machine hits all alike.

    Args:
        functions: by name; called without arguments.
        device: CUDA times are taken on the device, by events.
        budget: seconds after which no further round begins.
        rounds: at least and at most so many rounds.
        before: what to call, untimed, before some of the functions.
        warm: begin with a round that is not counted, as functions want it that have not just run.
    """
    times = {name: [] for name in functions}
    before = before or {}
    for name, function in functions.items() if warm else ():
        before.get(name, _nothing)()
        function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    end = time.perf_counter() + budget
    for done in range(rounds[1]):
        if done >= rounds[0] and time.perf_counter() > end:
            break
        for name, function in functions.items():
            before.get(name, _nothing)()
            times[name].append(_seconds(function, device))
    return times


def kernel_seconds(function: Callable, calls: int = 5) -> float:
    """Seconds that a call keeps a CUDA device busy: the sum of its kernels and copies, as torch.profiler has them.

    The time of a call, by events, begins before the host has found out what to launch; in a program that launches
    ahead of the device this is what the call costs.
    """
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    if microseconds == 0:
        raise RuntimeError(
            "torch.profiler saw no kernel on the CUDA device: are its counters to be had here?"
        )
    return microseconds / calls / 1e6
