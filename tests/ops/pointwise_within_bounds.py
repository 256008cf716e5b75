"""Runs the pointwise operators of float32 and int8 on tensors that end at inaccessible memory and compares with
float64, for test_pointwise.py; `main` prints the instruction set it ran with."""

import test_int8_pointwise as of_int8
import test_pointwise as of_float32
import torch
from guarded_memory import guarded

from mrcnn_ext.ops.int8_pointwise import add_int8_pointwise_conv_, int8_pointwise_conv, int8_weight
from mrcnn_ext.ops.pointwise import PointwiseWeight, add_pointwise_conv_, pointwise_conv, pointwise_weight

# N, C, O, H, W, stride
SIZES = (
    (1, 2, 1, 1, 1, 1),
    (2, 7, 15, 3, 5, 2),
    (1, 67, 70, 5, 5, 1),
    (5, 2101, 17, 1, 1, 1),
    (1, 1024, 560, 5, 6, 1),
)


def added(expected, dtype):
    value = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return value.contiguous(memory_format=torch.channels_last)


def run_float32(size):
    x, weight, bias = of_float32.random_case(torch.float32, *size)
    stride = size[-1]
    expected = of_float32.exact(x, weight, bias, stride)
    add = added(expected, torch.float32)
    expected += add
    ready = PointwiseWeight(guarded(pointwise_weight(weight, torch.float32).values), len(weight))
    x, add, bias = guarded(x), guarded(add), guarded(bias)
    close = {"rtol": 0, "atol": 3e-5}
    torch.testing.assert_close(pointwise_conv(x, ready, bias, add, stride).double(), expected, **close)
    add_pointwise_conv_(add, x, ready, bias, stride)
    torch.testing.assert_close(add.double(), expected, **close)


def run_int8(size, dtype):
    x, weight, bias = of_int8.random_case(*size, dtype=dtype)
    stride = size[-1]
    expected = of_int8.exact(x, weight, bias, stride)
    add = added(expected, dtype)
    expected += add
    ready = int8_weight(weight, bias, of_int8.SCALE, of_int8.ZERO_POINT)
    ready = ready._replace(
        values=guarded(ready.values), weight_scale=guarded(ready.weight_scale), bias=guarded(ready.bias)
    )
    x, add = guarded(x), guarded(add)
    close = of_int8.ROUNDED[dtype]
    torch.testing.assert_close(int8_pointwise_conv(x, ready, add, stride).double(), expected, **close)
    add_int8_pointwise_conv_(add, x, ready, stride)
    torch.testing.assert_close(add.double(), expected, **close)


def main():
    for size in SIZES:
        run_float32(size)
        for dtype in of_int8.DTYPES:
            run_int8(size, dtype)
    values = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 0.0])[:, None, None, None]
    of_int8.check_ends_of_the_range(values)
    print(torch.backends.cpu.get_cpu_capability())
