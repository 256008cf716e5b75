"""The 3x3 convolutions of Mask and Keypoint R-CNN by Winograd's algorithm, beside oneDNN's in float32 and bf16."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers.winograd import winograd_conv3x3, winograd_weight
from .timing import race

# Of R-50-FPN for an image of 800 x 1216 with 100 masks or 50 people: N, C, O, H, W.
LAYERS = {
    "res2": (1, 64, 64, 200, 304),
    "res3": (1, 128, 128, 100, 152),
    "res4": (1, 256, 256, 50, 76),
    "res5": (1, 512, 512, 25, 38),
    "FPN and RPN, p2": (1, 256, 256, 200, 304),
    "FPN and RPN, p3": (1, 256, 256, 100, 152),
    "FPN and RPN, p5": (1, 256, 256, 25, 38),
    "mask head": (100, 256, 256, 14, 14),
    "keypoint head": (50, 512, 512, 14, 14),
}
METHODS = ("float32", "bf16", "winograd float32", "winograd int16")
_CPU = torch.device("cpu")
# Errors above these, in standard deviations of the result, are mistakes.
_LARGEST_ERRORS = {"float32": 1e-4, "bf16": 0.2, "winograd float32": 1e-4, "winograd int16": 0.02}


def measure(name: str, size: tuple[int, ...], budget: float, threads: int = 1) -> dict:
    """One row: milliseconds of each way to convolve and add a bias, and its error, the root of the mean square in
    standard deviations of the result in float64. Maps are bf16, as they are between layers; of "float32" and
    "winograd float32" they are float32.

    Raises:
        AssertionError: a result is wrong.
    """
    torch.set_num_threads(threads)
    n, channels, outputs, height, width = size
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator).relu().bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(outputs, generator=generator)
    wide, last = x.float(), weight.contiguous(memory_format=torch.channels_last)
    transformed, in_int16 = winograd_weight(weight), winograd_weight(weight, int16=True)
    narrow, narrow_bias = last.bfloat16(), bias.bfloat16()
    functions = {
        "float32": lambda: F.conv2d(wide, last, bias, padding=1),
        "bf16": lambda: F.conv2d(x, narrow, narrow_bias, padding=1),
        "winograd float32": lambda: winograd_conv3x3(wide, transformed, bias),
        "winograd int16": lambda: winograd_conv3x3(x, in_int16, bias),
    }
    expected = F.conv2d(wide[:1].double(), weight.double(), bias.double(), padding=1)
    errors = {method: _error(function(), expected) for method, function in functions.items()}
    for method, error in errors.items():
        if not error < _LARGEST_ERRORS[method]:
            raise AssertionError(f"{name}, {method}: wrong by {error:.2g}: there is nothing to compare")
    seconds = race(functions, _CPU, budget, (3, 50))
    row = {"layer": name, "size": "x".join(map(str, size)), "threads": threads}
    row |= {f"{method}_ms": 1000 * seconds[method] for method in METHODS}
    row |= {f"{method}_error": error for method, error in errors.items()}
    row["gflop"] = 18e-9 * n * channels * outputs * height * width
    return row


def _error(result: Tensor, expected: Tensor) -> float:
    difference = result[: len(expected)].double() - expected
    return (difference.square().mean().sqrt() / expected.std()).item()


def header() -> str:
    return f"{'layer, N x C x O x H x W, threads':46}" + "".join(f"{name:>26}" for name in METHODS)


def line(row: dict) -> str:
    """A row of `measure` as text: milliseconds, how many times faster than float32, and the error."""
    case = f"{row['layer']}, {row['size']}, {row['threads']}"
    cells = []
    for name in METHODS:
        ratio = row["float32_ms"] / row[f"{name}_ms"]
        cells.append(f"{row[f'{name}_ms']:.1f} {ratio:5.2f}x {row[f'{name}_error']:.1e}")
    return f"{case:46}" + "".join(f"{cell:>26}" for cell in cells)
