"""The cost model against what can be measured on CPU processes: its figures of this machine, and a training's steps."""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import roi_align

from ..engine.launch import launch
from .cost import Cost, cost_of
from .hardware import Assumptions, Hardware
from .model import Case, Subject
from .step_profile import profile_step

__all__ = ["check_processes"]

_SIZE = 2**24  # bytes that are copied and reduced
_REPEATS = 5
_WARM = 2  # steps that are not counted
_SMALL = (64, 64)


def check_processes(
    config: str, processes: int, size: tuple[int, int], file: Path, steps: int = 5, opts=()
) -> dict:
    """Predicts and measures the training steps of CPU processes connected by gloo, one image each.

    The figures that data sheets give of GPUs are measured here, in all processes at once: they share caches and memory.
    So is the host's time, by which a step on an image of 64x64 exceeds the sum of its operators. Nothing of the size
    that is predicted is run before.

    Args:
        config: a yaml file or name.
        processes: how many.
        size: (height, width) of the image.
        file: for what the processes find; written.
        steps: that are timed; the median counts.
        opts: KEY VALUE pairs that go over the config.

    Returns:
        "processes"; "predicted" and "measured", dicts of the ms of "step" and its parts "forward", "backward" (with
        communication) and "optimizer"; "communication" and "host", what is predicted for these, ms.
    """
    values = {"config": config, "size": size, "file": str(file), "steps": steps, "opts": list(opts)}
    values |= {"num_gpus": 0, "num_processes": processes, "num_machines": 1, "machine_rank": 0}
    launch(_check, argparse.Namespace(**values, dist_url="auto"))
    return json.loads(file.read_text())


def _check(args):
    torch.set_num_threads(1)
    subject = Subject(args.config, opts=args.opts)
    hardware = _this_machine()
    small, batch = (
        subject.training_inputs(Case("training", *size, batch=1, instances=10))
        for size in (_SMALL, args.size)
    )
    predicted_small = _predict(subject.stock, small, hardware)
    measured_small = _step_seconds(subject.stock, small, args.steps)
    host = max(0.0, measured_small["step"] - predicted_small.step + predicted_small.exposed)
    cost = _predict(subject.stock, batch, replace(hardware, host=host))
    model = subject.stock
    if comm.get_world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=False)
    measured = _step_seconds(model, batch, args.steps)
    if comm.is_main_process():
        predicted = {"step": cost.step, "forward": cost.forward, "backward": cost.backward + cost.exposed}
        predicted["optimizer"] = cost.optimizer
        found = {
            "processes": comm.get_world_size(),
            "communication": 1e3 * cost.communication,
            "host": 1e3 * host,
        }
        for name, parts in (("predicted", predicted), ("measured", measured)):
            found[name] = {part: 1e3 * seconds for part, seconds in parts.items()}
        Path(args.file).write_text(json.dumps(found))


def _predict(model, batch, hardware) -> Cost:
    profile = profile_step(model, batch, compute=False)
    everything = Assumptions(compute=1, memory=1, communication=1, latency=0, image_seconds=0)
    options = {"images_per_gpu": 1, "total_images": 1, "precision": "fp32", "assumptions": everything}
    return cost_of(profile, hardware, comm.get_world_size(), **options)


def _step_seconds(model, batch, steps) -> dict[str, float]:
    """Medians of the step and its parts, of the slowest process."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-6, momentum=0.9)
    rows = []
    with EventStorage(0):
        for _ in range(_WARM + steps):
            optimizer.zero_grad()
            comm.synchronize()
            times = [time.perf_counter()]
            loss = sum(model(batch).values())
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            optimizer.step()
            times.append(time.perf_counter())
            rows.append([times[3] - times[0], *(after - before for before, after in pairwise(times))])
    medians = [statistics.median(column) for column in zip(*rows[_WARM:], strict=True)]
    slowest = [max(values) for values in zip(*comm.all_gather(medians), strict=True)]
    return dict(zip(("step", "forward", "backward", "optimizer"), slowest, strict=True))


def _median_seconds(function: Callable) -> float:
    times = []
    for _ in range(1 + _REPEATS):
        comm.synchronize()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


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
    figures = {"launch": launch_seconds, "asynchronous": False, "gather": _gather_seconds()}
    return Hardware({"fp32": flops}, bandwidth, float("inf"), link, link, **figures)


def _gather_seconds() -> tuple[float, float]:
    """For a value that torchvision's RoIAlign gathers, in its forward and its backward pass."""
    boxes = 16 * torch.rand(64, 1) + torch.tensor([0.0, 0.0, 14.0, 14.0])
    rois = torch.cat([torch.zeros(64, 1), boxes], dim=1)
    features = torch.randn(1, 64, 32, 32, requires_grad=True)
    pooled = roi_align(features, rois, 7, sampling_ratio=2)
    gradient, values = torch.randn_like(pooled), 16 * pooled.numel()  # four samples of four values
    return (
        _median_seconds(lambda: roi_align(features, rois, 7, sampling_ratio=2)) / values,
        _median_seconds(lambda: torch.autograd.grad(pooled, features, gradient, retain_graph=True)) / values,
    )
