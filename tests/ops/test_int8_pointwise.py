"""1x1 convolutions and linear layers in int8 against PyTorch's of the quantised values in float64."""

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import int8_kernels_are_available
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.int8_pointwise import (
    add_int8_pointwise_conv_,
    int8_pointwise_conv,
    int8_weight,
    quantize_weight,
)

needs_it = pytest.mark.skipif(
    not int8_kernels_are_available(),
    reason="the compiled operators are not built, or there is no AVX2",
)
# N, C, O, H, W, stride
SIZES = [
    (1, 64, 256, 10, 12, 1),
    (2, 5, 15, 7, 9, 2),
    (1, 1, 1, 1, 1, 1),
    (3, 2051, 80, 5, 3, 1),  # more channels than are multiplied at a time
    (1, 256, 100, 13, 17, 1),  # six registers of outputs and a part of one
    (7, 4098, 70, 1, 1, 1),
    (2, 34, 48, 8, 5, 3),
    (1, 1024, 560, 14, 14, 1),  # more weights than stay in the cache
]
DTYPES = [torch.float32, torch.bfloat16]
ROUNDED = {torch.float32: {"rtol": 1e-5, "atol": 1e-4}, torch.bfloat16: {"rtol": 2**-8, "atol": 1e-4}}
SCALE, ZERO_POINT = 1 / 32, 100  # exact in binary: PyTorch's rounding is the kernel's


def random_case(n, channels, outputs, height, width, stride=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(n, channels, height, width, generator=generator).to(dtype)  # some out of range
    weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None, stride=1):
    quantized = (x.double() / SCALE + ZERO_POINT).round().clamp(0, 255)
    values, scales = quantize_weight(weight)
    weight = (values.double() * scales.double()[:, None])[:, :, None, None]
    return F.conv2d(
        SCALE * (quantized - ZERO_POINT), weight, None if bias is None else bias.double(), stride=stride
    )


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_convolution(size, dtype):
    x, weight, bias = random_case(*size, dtype=dtype)
    assert x.numel() < 100 or (x.amin() / SCALE < -ZERO_POINT and x.amax() / SCALE > 255 - ZERO_POINT)
    stride, ready = size[-1], int8_weight(weight, bias, SCALE, ZERO_POINT)
    expected = exact(x, weight, bias, stride)
    result = int8_pointwise_conv(x, ready, stride=stride)
    assert result.shape == expected.shape and result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, **ROUNDED[dtype])
    without_bias = int8_pointwise_conv(x, int8_weight(weight, None, SCALE, ZERO_POINT), stride=stride)
    torch.testing.assert_close(without_bias.double(), exact(x, weight, None, stride), **ROUNDED[dtype])

    add = torch.randn(expected.shape).to(dtype)
    result = int8_pointwise_conv(x, ready, add, stride, relu=True)
    torch.testing.assert_close(result.double(), (expected + add).relu(), **ROUNDED[dtype])
    add = add.contiguous(memory_format=torch.channels_last)
    expected = expected + add
    assert add_int8_pointwise_conv_(add, x, ready, stride) is add
    torch.testing.assert_close(add.double(), expected, **ROUNDED[dtype])


@needs_it
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_adds_a_map_of_half_the_size(dtype):
    x, weight, bias = random_case(2, 31, 48, 6, 10, dtype=dtype)
    add = torch.randn(2, 48, 3, 5).to(dtype)
    expected = exact(x, weight, bias) + F.interpolate(add.double(), scale_factor=2.0)
    result = int8_pointwise_conv(x, int8_weight(weight, bias, SCALE, ZERO_POINT), add)
    torch.testing.assert_close(result.double(), expected, **ROUNDED[dtype])


@needs_it
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact(sign):
    channels = 66304
    x = torch.full((1, channels, 1, 1), 255.0)
    ready = int8_weight(torch.full((3, channels), sign * 127.0), None, 1.0, 0)
    result = int8_pointwise_conv(x, ready)
    assert torch.equal(result.flatten(), torch.full((3,), sign * 255.0 * 127 * channels))
    with pytest.raises(ValueError, match="from 1 to 66304 channels, got 66305"):
        int8_pointwise_conv(torch.zeros(1, channels + 1, 1, 1), ready)


@needs_it
def test_what_is_not_finite_counts_as_an_end_of_the_range():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1e30, -1e30, 0.0])[:, None, None, None]
    check_ends_of_the_range(x)


def check_ends_of_the_range(x):
    weight = torch.ones(1, 1)
    result = int8_pointwise_conv(x, int8_weight(weight, None, SCALE, ZERO_POINT)).flatten()
    low, high = -SCALE * ZERO_POINT, SCALE * (255 - ZERO_POINT)
    torch.testing.assert_close(result, torch.tensor([high, low, low, high, low, 0.0]))


@needs_it
@pytest.mark.parametrize("size", [(3, 2051, 80, 21, 18), (3, 70, 330, 1, 1)], ids=["rows", "outputs"])
def test_layouts_and_threads_make_no_difference(thread_counts, size):
    x, weight, bias = random_case(*size)
    ready = int8_weight(weight, bias, SCALE, ZERO_POINT)
    expected = int8_pointwise_conv(x, ready)
    assert torch.equal(int8_pointwise_conv(x.contiguous(), ready), expected)
    channels = size[1]
    wider = torch.zeros(3, channels + 8, *size[3:]).contiguous(memory_format=torch.channels_last)
    wider[:, 4 : 4 + channels] = x
    assert torch.equal(int8_pointwise_conv(wider[:, 4 : 4 + channels], ready), expected)
    for _ in thread_counts:
        assert torch.equal(int8_pointwise_conv(x, ready), expected)


@needs_it
def test_nothing_gives_nothing():
    ready = int8_weight(torch.ones(32, 15), None, SCALE, ZERO_POINT)
    for size in ((0, 15, 5, 5), (2, 15, 0, 5)):
        x = torch.zeros(size)
        assert int8_pointwise_conv(x, ready).shape == (size[0], 32, *size[2:])
        total = torch.zeros(size[0], 32, *size[2:]).contiguous(memory_format=torch.channels_last)
        add_int8_pointwise_conv_(total, x, ready)


@needs_it
def test_opcheck():
    x, weight, bias = random_case(1, 15, 33, 6, 5)
    ready = int8_weight(weight, bias, SCALE, ZERO_POINT)
    op = torch.ops.mrcnn_ext.int8_pointwise_conv
    torch.library.opcheck(op, (x, *ready, None, 1, True))
    add = torch.randn(1, 33, 3, 3).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(op, (x, *ready, add, 2, True))
    torch.library.opcheck(torch.ops.mrcnn_ext.add_int8_pointwise_conv_, (add, x, *ready, 2, True))


@needs_it
def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 31, 16, 6, 6)
    good = int8_weight(weight, bias, SCALE, ZERO_POINT)
    for call, error, message in (
        (
            lambda: int8_pointwise_conv(x.double(), good),
            TypeError,
            "input must be float32 or bfloat16, got D",
        ),
        (lambda: int8_pointwise_conv(x[0], good), ValueError, r"\(N, C, H, W\), got \[31, 6, 6\]"),
        (
            lambda: int8_pointwise_conv(x[:, :28], good),
            ValueError,
            "int8_weight makes for 28 input and 16 out",
        ),
        (
            lambda: int8_pointwise_conv(x, good._replace(scale=0.0)),
            ValueError,
            "scale must be positive, got 0",
        ),
        (lambda: int8_pointwise_conv(x, good._replace(zero_point=256)), ValueError, r"\[0, 255\], got 256"),
        (
            lambda: int8_pointwise_conv(x, good._replace(values=good.values.float())),
            TypeError,
            "weight must be int8, got Float",
        ),
        (
            lambda: int8_pointwise_conv(x, good._replace(bias=bias[:8])),
            ValueError,
            r"bias must be \(16,\) float",
        ),
        (lambda: int8_pointwise_conv(x, good, stride=0), ValueError, "stride must be at least 1, got 0"),
        (
            lambda: int8_pointwise_conv(x, good, add=x),
            ValueError,
            "add must be Float and have the output's shape",
        ),
        (
            lambda: add_int8_pointwise_conv_(torch.zeros(1, 16, 6, 6).bfloat16(), x, good),
            ValueError,
            "sum must be Float, channels-last",
        ),
        (
            lambda: int8_weight(torch.zeros(16, 31, 3, 3), None, 1.0, 0),
            ValueError,
            r"\(O, C, 1, 1\), got \(16, 31",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_weights_are_quantized_with_the_smallest_error():
    weight = torch.randn(8, 400, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1, 0] = 0, 4.5
    values, scales = quantize_weight(weight)
    assert values.dtype == torch.int8 and not values[0].any() and values.abs().max() == 127
    error = (values * scales[:, None] - weight).square().sum(1)
    plain = weight.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
    assert (error <= ((weight / plain).round() * plain - weight).square().sum(1) + 1e-9).all()


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    ready = int8_weight(torch.ones(16, 8), None, SCALE, ZERO_POINT)
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    assert not int8_kernels_are_available()
    with pytest.raises(NotImplementedError, match="int8_pointwise_conv has no slower path, .* `pip install"):
        int8_pointwise_conv(torch.zeros(1, 8, 2, 2), ready)
