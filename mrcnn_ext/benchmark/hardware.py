"""GPUs by their data sheets, and what no data sheet tells, for `mrcnn_ext.benchmark.cost`. Imports no torch."""

from dataclasses import dataclass, replace

__all__ = ["EFFICIENCY", "GPUS", "PRECISIONS", "Assumptions", "Hardware", "with_options"]

PRECISIONS = {"fp32": 1.0, "tf32": 1.0, "amp": 0.5}  # and the bytes of activations, to those of float32

# The part of the peak that convolutions and matrix products are taken to reach, see `Assumptions`.
EFFICIENCY = {"fp32": 0.6, "tf32": 0.4, "amp": 0.4}


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


def with_options(hardware: Hardware, precision: str, **options) -> Hardware:
    """Hardware with some of its figures replaced where they are given: ``flops`` of the precision, and attributes."""
    flops = options.pop("flops", None)
    given = {name: value for name, value in options.items() if value is not None}
    if flops is not None:
        given["flops"] = {**hardware.flops, precision: flops}
    return replace(hardware, **given)
