r"""What a training costs on GPUs that are not at hand: time, memory, communication, data, and what bounds it.

The model, for n GPUs with b images each:

* Computing. Each operator takes as long as its arithmetic or its memory traffic, whichever is longer (roofline:
  Williams et al., 2009): :math:`t_{op} = \max(F / (\epsilon_F P),\ B / (\epsilon_B W))` with F floating-point
  operations, B bytes, the GPU's peak P and memory bandwidth W, and the part :math:`\epsilon` of them that kernels
  reach. RoIAlign's traffic is the values that it gathers, four a sample, and twice as many in its backward pass.
  Forward and backward pass are the sums over their operators, or the time that the CPU takes to launch them if that is
  longer.
* The optimiser (SGD with momentum) reads weights, gradients and momenta and writes weights and momenta: 20 bytes a
  trained parameter.
* Communication. A ring all-reduce (Patarasuk and Yuan, 2009) of G bytes of gradients: each GPU sends and receives
  :math:`2 (n-1)/n \cdot G`, at the bandwidth of the links within a machine; among machines each of the machine's
  network cards carries one of as many rings, and the slower of the two counts. Each of the :math:`2 (n-1)` steps has a
  latency.
* DistributedDataParallel overlaps it with the backward pass: :math:`t = t_f + \max(t_b, t_c) + t_o`. CPUs, which
  compute and communicate with the same cores, take :math:`t_f + t_b + t_c + t_o`, and what the host takes besides.
* Memory: weights, gradients, momenta and DDP's buckets, 4 bytes each a parameter; the activations that the backward
  pass needs; and a constant for CUDA, workspaces and fragmentation.
* Data: images of the bytes that COCO's have on the average, decoded and resized by so many cores for each GPU.

What it leaves out: images of different sizes, for which the GPUs wait for the one with the largest; the host's share
of the heads (matching, sampling); evaluation; failures.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .hardware import EFFICIENCY, PRECISIONS, Assumptions, Hardware
from .step_profile import StepProfile

__all__ = ["Cost", "cost_of", "ring_seconds"]


@dataclass(frozen=True)
class Cost:
    """Of a training on n GPUs; seconds and bytes.

    Attributes:
        gpus: n.
        batch: images of a step, of all GPUs.
        forward, backward, optimizer, communication: of a step.
        step: with what overlaps, and with waiting for data.
        exposed: what communication adds to the step.
        sent: bytes that a GPU sends in a step.
        memory: of a GPU.
        images_per_second: of all GPUs.
        read: bytes a second of image files.
        cores: of each GPU that keep it busy with images.
        iterations: of the schedule, whose images are the same for any n.
        total: of the schedule.
        bound: what a faster one of would shorten the step most: "arithmetic", "memory bandwidth", "kernel launches",
            "communication" or "data loading".
    """

    gpus: int
    batch: int
    forward: float
    backward: float
    optimizer: float
    communication: float
    step: float
    exposed: float
    sent: float
    memory: float
    images_per_second: float
    read: float
    cores: float
    iterations: int
    total: float
    bound: str


def ring_seconds(size: float, gpus: int, hardware: Hardware, assumptions: Assumptions) -> float:
    """Of a ring all-reduce of ``size`` bytes."""
    if gpus == 1:
        return 0.0
    sent = 2 * (gpus - 1) / gpus * size
    seconds = sent / hardware.link
    if gpus > hardware.per_machine:
        seconds = max(seconds, sent / (hardware.network * hardware.per_machine))
    return seconds / assumptions.communication + 2 * (gpus - 1) * assumptions.latency


def cost_of(
    profile: StepProfile,
    hardware: Hardware,
    gpus: int,
    *,
    images_per_gpu: int,
    total_images: int,
    precision: str = "tf32",
    assumptions: Assumptions | None = None,
) -> Cost:
    """
    Args:
        profile: of a step of any number of images; the cost grows with them.
        gpus: how many.
        images_per_gpu: of a step.
        total_images: of the schedule: iterations times batch.
        precision: of `PRECISIONS`.

    Raises:
        ValueError: an argument is not positive, or the precision is none of the hardware's.
    """
    given = {"gpus": gpus, "images_per_gpu": images_per_gpu, "total_images": total_images}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if precision not in hardware.flops:
        raise ValueError(f"precision must be one of {', '.join(hardware.flops)}, got {precision!r}")
    assume = assumptions or Assumptions()
    efficiency = EFFICIENCY[precision] if assume.compute is None else assume.compute
    times = images_per_gpu / profile.images
    traffic = PRECISIONS[precision] / (hardware.bandwidth * assume.memory)
    gather = hardware.gather or (4 * traffic, 8 * traffic)
    forward, backward = (
        _Pass.of(
            table,
            times * torch.tensor([1 / (hardware.flops[precision] * efficiency), traffic, value]),
            hardware,
        )
        for table, value in zip((profile.forward, profile.backward), gather, strict=True)
    )
    gradients = 4.0 * profile.trained
    optimizer = 5 * gradients / (hardware.bandwidth * assume.memory)
    communication = ring_seconds(gradients, gpus, hardware, assume)
    exposed = max(0.0, communication - backward.seconds) if hardware.asynchronous else communication
    computing = forward.seconds + backward.seconds + optimizer + hardware.host
    data = images_per_gpu * assume.image_seconds / assume.cores
    step = max(computing + exposed, data)
    batch = gpus * images_per_gpu
    iterations = math.ceil(total_images / batch)
    parts = {
        "arithmetic": forward.arithmetic + backward.arithmetic,
        "memory bandwidth": forward.traffic + backward.traffic + optimizer,
        "kernel launches": forward.launches + backward.launches + hardware.host,
        "communication": exposed,
        "data loading": max(0.0, data - computing - exposed),
    }
    buckets = gradients if gpus > 1 else 0.0
    memory = 4.0 * profile.parameters + 2 * gradients + buckets
    return Cost(
        gpus=gpus,
        batch=batch,
        forward=forward.seconds,
        backward=backward.seconds,
        optimizer=optimizer,
        communication=communication,
        step=step,
        exposed=exposed,
        sent=2 * (gpus - 1) / gpus * gradients,
        memory=memory + profile.saved * times * PRECISIONS[precision] + assume.fixed,
        images_per_second=batch / step,
        read=batch / step * assume.image_bytes,
        cores=images_per_gpu / (computing + exposed) * assume.image_seconds,
        iterations=iterations,
        total=iterations * step,
        bound=max(parts, key=lambda name: parts[name]),
    )


@dataclass(frozen=True)
class _Pass:
    """Seconds of a forward or backward pass: in all, and of the operators that each resource bounds."""

    seconds: float
    arithmetic: float
    traffic: float
    launches: float

    @classmethod
    def of(cls, table: Tensor, costs: Tensor, hardware: Hardware) -> "_Pass":
        """Of a table of `StepProfile`; ``costs``: seconds for each of its units, (3,)."""
        by_flops, by_bytes, by_values = (table * costs).unbind(1)
        by_traffic = torch.maximum(by_bytes, by_values)
        is_arithmetic = by_flops > by_traffic
        arithmetic = float(by_flops[is_arithmetic].sum())
        traffic = float(by_traffic[~is_arithmetic].sum())
        launches = len(table) * hardware.launch
        beyond = max(0.0, launches - arithmetic - traffic) if hardware.asynchronous else launches
        return cls(arithmetic + traffic + beyond, arithmetic, traffic, beyond)
