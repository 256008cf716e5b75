"""How much memory a function takes at most."""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch


def peak_memory(function: Callable, device: torch.device) -> float:
    """Bytes by which memory grows at most while `function` runs.

    On CUDA those of PyTorch's allocator. On the CPU those of the process, which Linux alone tells; NaN
    elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    if not sys.platform.startswith("linux"):
        function()
        return float("nan")
    # What was freed before but kept by the allocator would serve again and not be seen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    function()
    return max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) * 1024
