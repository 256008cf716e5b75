"""Runs pointwise_conv of float32 on tensors that end at inaccessible memory, for test_pointwise_float32.py; prints the
instruction set it ran with."""

import torch
from guarded_memory import guarded

from mrcnn_ext.ops.pointwise import PointwiseWeight, add_pointwise_conv_, pointwise_conv, pointwise_weight


def main():
    generator = torch.Generator().manual_seed(0)
    for n, channels, outputs, height, width, stride in (
        (1, 1, 1, 1, 1, 1),
        (2, 7, 15, 3, 5, 2),
        (1, 33, 70, 5, 5, 1),
        (5, 1025, 17, 1, 1, 1),
    ):
        x = torch.randn(n, channels, height, width, generator=generator)
        weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
        bias = torch.randn(outputs, generator=generator)
        add = torch.randn(n, outputs, -(-height // stride), -(-width // stride), generator=generator)
        x, add = (value.contiguous(memory_format=torch.channels_last) for value in (x, add))
        expected = torch.conv2d(
            x.double(), weight.double()[:, :, None, None], bias.double(), stride=stride
        ).add(add)
        values, _ = pointwise_weight(weight, torch.float32)
        ready = PointwiseWeight(guarded(values), outputs)
        x, add, bias = guarded(x), guarded(add), guarded(bias)
        result = pointwise_conv(x, ready, bias, add, stride)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)
        add_pointwise_conv_(add, x, ready, bias, stride)
        torch.testing.assert_close(add.double(), expected, rtol=0, atol=1e-5)
    print(torch.backends.cpu.get_cpu_capability())


if __name__ == "__main__":
    main()
