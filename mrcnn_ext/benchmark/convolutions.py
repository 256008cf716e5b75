"""The convolutions of Mask and Keypoint R-CNN by our algorithms, beside oneDNN's in float32 and bf16, and beside what
the processor multiplies at most."""

import time

import torch
from torch import Tensor
from torch.nn import functional as F

from ..accel.cpu_features import (
    bf16_kernels_are_available,
    float32_kernels_are_available,
    int8_kernels_are_available,
)
from ..ops import _extension
from ..ops.int8_pointwise import int8_pointwise_conv, int8_weight
from ..ops.pointwise import pointwise_conv, pointwise_weight
from ..ops.stem import stem_conv_pool, stem_weight
from ..ops.winograd import (
    winograd_conv3x3,
    winograd_int8_is_available,
    winograd_int8_weight,
    winograd_weight,
)
from .timing import race

# Of R-50-FPN for an image of 800 x 1216 with 100 masks or 50 people: N, C, O, H, W and the side of the kernel.
LAYERS = {
    "res2": (1, 64, 64, 200, 304, 3),
    "res3": (1, 128, 128, 100, 152, 3),
    "res4": (1, 256, 256, 50, 76, 3),
    "res5": (1, 512, 512, 25, 38, 3),
    "FPN and RPN, p2": (1, 256, 256, 200, 304, 3),
    "FPN and RPN, p3": (1, 256, 256, 100, 152, 3),
    "FPN and RPN, p5": (1, 256, 256, 25, 38, 3),
    "mask head": (100, 256, 256, 14, 14, 3),
    "keypoint head": (50, 512, 512, 14, 14, 3),
    "res2, last": (1, 64, 256, 200, 304, 1),
    "res3, last": (1, 128, 512, 100, 152, 1),
    "res4, first": (1, 1024, 256, 50, 76, 1),
    "res5, last": (1, 512, 2048, 25, 38, 1),
    "FPN lateral, p2": (1, 256, 256, 200, 304, 1),
    "RPN predictions, p2": (1, 256, 15, 200, 304, 1),
    "box head": (1000, 12544, 1024, 1, 1, 1),
    "stem": (1, 3, 64, 800, 1216, 7),
}
# What each multiplies.
METHODS = {
    "float32": "float32",
    "bf16": "bf16",
    "winograd float32": "float32",
    "winograd int16": "int16",
    "winograd int8": "int8",
    "ours bf16": "bf16",
    "ours float32": "float32",
    "ours int8": "int8",
}
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int16": torch.int16, "int8": torch.int8}
_CPU = torch.device("cpu")
# Errors above these, in standard deviations of the result, are mistakes.
_LARGEST_ERRORS = dict(zip(METHODS, (1e-4, 0.2, 1e-4, 0.02, 0.1, 0.2, 1e-4, 0.05), strict=True))
# Of a 3x3 convolution's multiplications, those of Winograd's F(4x4, 3x3).
_WINOGRAD_PART = 36 / 144


def rates(threads: int, seconds: float = 0.2) -> dict[str, float]:
    """Multiply-adds per second of the processor, all threads together, from registers alone: the best of a few loops of
    the instruction that our kernels multiply each dtype with. Dtypes that it has none for are absent."""
    if not _extension.is_available():
        return {}
    torch.set_num_threads(threads)
    found = {}
    for name, dtype in _DTYPES.items():
        like, repeats, best = torch.zeros(1, dtype=dtype), 1 << 16, 0.0
        end = time.perf_counter() + seconds
        try:
            while time.perf_counter() < end:
                start = time.perf_counter()
                done = torch.ops.mrcnn_ext.multiply_adds(like, repeats)
                took = time.perf_counter() - start
                best = max(best, done / took)
                if took < seconds / 20:
                    repeats *= 2
        except NotImplementedError:
            continue
        found[name] = best
    return found


def measure(
    name: str,
    size: tuple[int, ...],
    budget: float,
    threads: int = 1,
    processor: dict[str, float] | None = None,
) -> dict:
    """One row: milliseconds of each way to convolve and add a bias, its error, the root of the mean square in
    standard deviations of the result in float64, and its multiplications as a part of those that the processor could do
    (of Winograd's those that it does). Maps are bf16, as they are between layers; of the stem, "float32" and "winograd
    float32" they are float32. "winograd" is of 3x3, "ours" of 1x1 and of the stem, whose ReLU and pooling are measured
    with it, where it is available; in float32 and int8 of 1x1 alone.

    Args:
        processor: `rates` of so many threads; None: they are measured.

    Raises:
        AssertionError: a result is wrong.
    """
    torch.set_num_threads(threads)
    n, channels, outputs, height, width, side = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator).relu().bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, side, side, generator=generator) / (side * side * channels) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    wide, last = x.float(), weight.contiguous(memory_format=torch.channels_last)
    narrow, narrow_bias = last.bfloat16(), bias.bfloat16()
    geometry = {"stride": 2 if side == 7 else 1, "padding": side // 2}

    def convolve(x, weight, bias):
        result = F.conv2d(x, weight, bias, **geometry)
        return F.max_pool2d(result.relu_(), 3, 2, 1) if side == 7 else result

    functions = {
        "float32": lambda: convolve(wide, last, bias),
        "bf16": lambda: convolve(x, narrow, narrow_bias),
    }
    if side == 7:  # all begin with the image as it is: float32, plane by plane
        x = wide.contiguous()
        narrowed = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
        functions["float32"] = lambda: convolve(x, last, bias)
        functions["bf16"] = lambda: convolve(x.to(**narrowed), narrow, narrow_bias)
    if side == 3:
        transformed, in_int16 = winograd_weight(weight), winograd_weight(weight, int16=True)
        functions["winograd float32"] = lambda: winograd_conv3x3(wide, transformed, bias)
        functions["winograd int16"] = lambda: winograd_conv3x3(x, in_int16, bias)
        if winograd_int8_is_available():
            in_8_bits = winograd_int8_weight(weight)
            functions["winograd int8"] = lambda: winograd_conv3x3(x, in_8_bits, bias)
    elif bf16_kernels_are_available():
        reordered = stem_weight(weight) if side == 7 else pointwise_weight(weight)
        ours = stem_conv_pool if side == 7 else pointwise_conv
        functions["ours bf16"] = lambda: ours(x, reordered, bias)
    if side == 1 and float32_kernels_are_available():
        in_float32 = pointwise_weight(weight, torch.float32)
        functions["ours float32"] = lambda: pointwise_conv(wide, in_float32, bias)
    if side == 1 and int8_kernels_are_available():
        in_int8 = int8_weight(weight, bias, wide.max().item() / 255, 0)
        functions["ours int8"] = lambda: int8_pointwise_conv(x, in_int8)
    expected = convolve(wide[:1].double(), weight.double(), bias.double())
    errors = {method: _error(function(), expected) for method, function in functions.items()}
    for method, error in errors.items():
        if not error < _LARGEST_ERRORS[method]:
            raise AssertionError(f"{name}, {method}: wrong by {error:.2g}: there is nothing to compare")
    seconds = race(functions, _CPU, budget, (3, 50))
    row = {"layer": name, "size": "x".join(map(str, size[:5])), "kernel": side, "threads": threads}
    row |= {f"{method}_ms": 1000 * seconds[method] if method in seconds else None for method in METHODS}
    row |= {f"{method}_error": errors.get(method) for method in METHODS}
    processor = rates(threads) if processor is None else processor
    multiplied = side * side * n * channels * outputs * height * width / geometry["stride"] ** 2
    for method, dtype in METHODS.items():
        known = method in seconds and dtype in processor
        part = _WINOGRAD_PART if method.startswith("winograd") else 1
        row[f"{method}_of_rate"] = part * multiplied / seconds[method] / processor[dtype] if known else None
    row["gflop"] = 2e-9 * multiplied
    return row


def _error(result: Tensor, expected: Tensor) -> float:
    difference = result[: len(expected)].double() - expected
    return (difference.square().mean().sqrt() / expected.std()).item()


def header() -> str:
    return f"{'layer, N x C x O x H x W, threads':46}" + "".join(f"{name:>28}" for name in METHODS)


def line(row: dict) -> str:
    """A row of `measure` as text: milliseconds, how many times faster than float32, the part of the processor's rate,
    and the error."""
    case = f"{row['layer']}, {row['size']}, {row['threads']}"
    cells = []
    for name in METHODS:
        if row[f"{name}_ms"] is None:
            cells.append("")
            continue
        ratio = row["float32_ms"] / row[f"{name}_ms"]
        part = row[f"{name}_of_rate"]
        part = "" if part is None else f" {part:4.0%}"
        cells.append(f"{row[f'{name}_ms']:.1f} {ratio:5.2f}x{part} {row[f'{name}_error']:.1e}")
    return f"{case:46}" + "".join(f"{cell:>28}" for cell in cells)
