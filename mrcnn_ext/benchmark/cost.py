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
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .step_profile import StepProfile

__all__ = ["GPUS", "PRECISIONS", "Assumptions", "Cost", "Hardware", "cost_of", "ring_seconds", "with_options"]

PRECISIONS = {"fp32": 1.0, "tf32": 1.0, "amp": 0.5}  # and the bytes of activations, to those of float32

_EFFICIENCY = {"fp32": 0.6, "tf32": 0.4, "amp": 0.4}


@dataclass(frozen=True)
class Hardware:
    """
    Attributes:
        flops: peak floating-point operations a second, by precision, dense.
        bandwidth: of memory, bytes a second.
        memory: bytes.
        link: bytes a second that a GPU sends to others of its machine.
        network: bytes a second that a GPU's network card sends.
        per_machine: GPUs of a machine, each with its card.
        launch: seconds that a kernel takes to launch.
        asynchronous: kernels are launched, and gradients sent, while others run, as on a GPU.
        gather: seconds for a value that RoIAlign gathers in the forward pass, and for one in the backward pass. None:
            by the memory bandwidth.
        host: seconds of a step that the host takes besides launching kernels.
    """

    flops: dict[str, float]
    bandwidth: float
    memory: float
    link: float
    network: float
    per_machine: int = 8
    launch: float = 6e-6
    asynchronous: bool = True
    gather: tuple[float, float] | None = None
    host: float = 0.0


# NVIDIA V100 16GB SXM2 (data sheet, 2018): 15.7 TFLOP/s (no TF32), 125 with float16, 900 GB/s, NVLink 300 GB/s in both
# directions; DGX-1: four 100 Gb/s cards for eight GPUs.
# NVIDIA A100 80GB SXM (data sheet, 2021): 19.5, 156 and 312 TFLOP/s, 2039 GB/s, NVLink 600 GB/s in both directions;
# DGX A100: a 200 Gb/s card for each GPU. NVIDIA H100 SXM (data sheet, 2022): 67, 494.5 and 989 TFLOP/s without
# sparsity; 3350 GB/s, NVLink 900 GB/s in both directions; DGX H100: 400 Gb/s for each GPU.
GPUS = {
    "v100": Hardware({"fp32": 15.7e12, "amp": 125e12}, 0.9e12, 16e9, link=150e9, network=6.25e9),
    "a100": Hardware(
        {"fp32": 19.5e12, "tf32": 156e12, "amp": 312e12}, 2.039e12, 80e9, link=300e9, network=25e9
    ),
    "h100": Hardware(
        {"fp32": 67e12, "tf32": 494.5e12, "amp": 989e12}, 3.35e12, 80e9, link=450e9, network=50e9
    ),
}


@dataclass(frozen=True)
class Assumptions:
    """What no data sheet tells.

    Attributes:
        compute: part of the peak that convolutions and matrix products reach. None: 0.6 in fp32, with which the model
            gives 0.28, 0.39 and 0.34 s a step for R-50-FPN, R-101-FPN and the keypoints' R-50-FPN on 8 V100s, where
            detectron2's model zoo has measured 0.26, 0.34 and 0.32; 0.4 with tensor cores, which was not compared.
        memory: part of the bandwidth that other kernels reach.
        communication: part of the links' bandwidth that collectives reach.
        latency: seconds of a step of the ring.
        fixed: bytes of CUDA, workspaces and fragmentation.
        image_bytes: of an image file; COCO train2017: 19.3 GB of 118287 images.
        image_seconds: that a core takes to read, decode, resize and augment an image.
        cores: for a GPU's data.
    """

    compute: float | None = None
    memory: float = 0.7
    communication: float = 0.8
    latency: float = 5e-6
    fixed: float = 2e9
    image_bytes: float = 163e3
    image_seconds: float = 0.03
    cores: int = 8


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
    efficiency = _EFFICIENCY[precision] if assume.compute is None else assume.compute
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


def with_options(hardware: Hardware, precision: str, **options) -> Hardware:
    """Hardware with some of its figures replaced where they are given: ``flops`` of the precision, and attributes."""
    flops = options.pop("flops", None)
    given = {name: value for name, value in options.items() if value is not None}
    if flops is not None:
        given["flops"] = {**hardware.flops, precision: flops}
    return replace(hardware, **given)
