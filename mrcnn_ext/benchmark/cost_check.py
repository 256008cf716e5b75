"""The cost model against what can be measured on CPU processes: its figures of this machine, and a training's steps."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ..engine.launch import launch
from .cost import Assumptions, Hardware, cost_of, ring_seconds
from .model import Case, Subject
from .step_profile import profile_step

__all__ = ["check_processes"]

_SIZE = 2**24  # bytes that are copied and reduced
_REPEATS = 5


def check_processes(
    config: str, processes: int, size: tuple[int, int], file: Path, steps: int = 5, opts=()
) -> dict:
    """Predicts and measures the training steps of CPU processes connected by gloo, one image each.

    The figures that data sheets give of GPUs are measured here, in all processes at once: they share caches and memory.

    Args:
        config: a yaml file or name.
        processes: how many.
        size: (height, width) of the image.
        file: for what the processes find; written.
        steps: that are timed; the median counts.
        opts: KEY VALUE pairs that go over the config.

    Returns:
        "processes", "predicted" and "measured" (steps a second), and the parts of the prediction in ms: "forward",
        "backward", "optimizer", "communication".
    """
    values = {"config": config, "size": size, "file": str(file), "steps": steps, "opts": list(opts)}
    values |= {"num_gpus": 0, "num_processes": processes, "num_machines": 1, "machine_rank": 0}
    launch(_check, argparse.Namespace(**values, dist_url="auto"))
    return json.loads(file.read_text())


def _check(args):
    torch.set_num_threads(1)
    subject = Subject(args.config, opts=args.opts)
    height, width = args.size
    batch = subject.training_inputs(Case("training", height, width, batch=1, instances=10))
    model = subject.stock.train()
    profile = profile_step(model, batch)
    hardware = _this_machine()
    everything = Assumptions(compute=1, memory=1, communication=1, latency=0, image_seconds=0)
    processes = comm.get_world_size()
    cost = cost_of(
        profile,
        hardware,
        processes,
        images_per_gpu=1,
        total_images=1,
        precision="fp32",
        assumptions=everything,
    )
    if processes > 1:
        model = DistributedDataParallel(model, find_unused_parameters=False)
    measured = _step_seconds(model, batch, args.steps)
    seconds = max(comm.all_gather(measured))
    if comm.is_main_process():
        parts = {"forward": cost.forward, "backward": cost.backward, "optimizer": cost.optimizer}
        parts["communication"] = ring_seconds(4.0 * profile.trained, processes, hardware, everything)
        found = {"processes": processes, "predicted": 1 / cost.step, "measured": 1 / seconds}
        found |= {name: 1e3 * value for name, value in parts.items()}
        Path(args.file).write_text(json.dumps(found))


def _step_seconds(model, batch, steps):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6, momentum=0.9)

    def step():
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        optimizer.step()

    with EventStorage(0):
        return _median_seconds(step, steps, warm=2)


def _median_seconds(function: Callable, repeats: int = _REPEATS, warm: int = 1) -> float:
    times = []
    for i in range(warm + repeats):
        comm.synchronize()
        start = time.perf_counter()
        function()
        if i >= warm:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _this_machine() -> Hardware:
    """What a process reaches while the others do the same."""
    x, weight = torch.randn(1, 64, 64, 96), torch.randn(64, 64, 3, 3)
    flops = 2 * x.numel() * weight[0].numel() / _median_seconds(lambda: F.conv2d(x, weight, padding=1))
    a, b = torch.randn(2, _SIZE // 4)
    bandwidth = 3 * _SIZE / _median_seconds(lambda: torch.add(a, b, out=b))
    small = torch.randn(8, requires_grad=True)

    def many_small():
        y = small
        for _ in range(200):
            y = y * 1.0
        y.sum().backward()

    launch_seconds = _median_seconds(many_small) / 400
    link = float("inf")
    if (processes := comm.get_world_size()) > 1:
        link = 2 * (processes - 1) / processes * _SIZE / _median_seconds(lambda: dist.all_reduce(a))
    return Hardware(
        {"fp32": flops}, bandwidth, float("inf"), link, link, launch=launch_seconds, asynchronous=False
    )
