"""Runs int8_pointwise_conv on tensors that end at inaccessible memory, for test_int8_pointwise.py."""

import torch
from guarded_memory import guarded

from mrcnn_ext.ops.int8_pointwise import add_int8_pointwise_conv_, int8_pointwise_conv, int8_weight


def main():
    generator = torch.Generator().manual_seed(0)
    for n, channels, outputs, height, width, stride in (
        (1, 1, 1, 1, 1, 1),
        (2, 7, 15, 3, 5, 2),
        (1, 67, 70, 5, 5, 1),
        (5, 2101, 17, 1, 1, 1),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(n, channels, height, width, generator=generator).to(dtype)
            weight, bias = (
                torch.randn(*size, generator=generator) for size in ((outputs, channels), (outputs,))
            )
            add = torch.randn(n, outputs, -(-height // stride), -(-width // stride), generator=generator)
            x, add = (value.contiguous(memory_format=torch.channels_last) for value in (x, add.to(dtype)))
            ready = int8_weight(weight, bias, 1 / 32, 128)
            expected = int8_pointwise_conv(x, ready, add, stride)
            ready = ready._replace(
                values=guarded(ready.values),
                weight_scale=guarded(ready.weight_scale),
                bias=guarded(ready.bias),
            )
            x, add = guarded(x), guarded(add)
            assert torch.equal(int8_pointwise_conv(x, ready, add, stride), expected)
            add_int8_pointwise_conv_(add, x, ready, stride)
            assert torch.equal(add, expected)
    print("done")


if __name__ == "__main__":
    main()
