"""A tool as a program, in processes that a server starts which has imported everything."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import torch

TOOLS = Path(__file__).parents[2] / "tools"


def run_tool(tool, arguments, log):
    """In a process of its own: the tool's file as the main program, its output to a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load data
    sys.argv = [str(TOOLS / f"{tool}.py"), *map(str, arguments)]
    runpy.run_path(sys.argv[0], run_name="__main__")


class ToolProcess:
    """Such a process, to be treated as one of ``subprocess``.

    Attributes:
        process: of ``multiprocessing``.
        log: path of its output.
    """

    def __init__(self, process, log):
        self.process = process
        self.log = log

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        self.process.join(0)
        return self.returncode

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.returncode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
