"""The main program of a tool, for processes that a server starts which has imported everything."""

import multiprocessing
import os
import sys
from importlib import import_module

import torch

TOOLS = {"train_net": "mrcnn_ext.engine.train_net", "lazyconfig_train_net": "mrcnn_ext.engine.lazy"}


def run_tool(tool, arguments, log):
    """In a process of its own: the tool's main program, its output to a file."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the workers that load data
    sys.argv = [f"{tool}.py", *map(str, arguments)]
    engine = import_module("mrcnn_ext.engine")
    engine.run_tool(import_module(TOOLS[tool]).main, engine.argument_parser())
