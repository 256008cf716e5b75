"""1x1 convolutions and linear layers in bf16 against PyTorch's in float64."""

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import bf16_kernels_are_available, cpu_has_avx512_bf16
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.pointwise import (
    PointwiseWeight,
    add_pointwise_conv_,
    pointwise_conv,
    pointwise_weight,
)

needs_it = pytest.mark.skipif(
    not (_extension.is_available() and cpu_has_avx512_bf16())
    or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the compiled operators are not built, or there is no AVX512-BF16",
)
# N, C, O, H, W, stride
SIZES = [
    (1, 64, 256, 10, 12, 1),
    (2, 6, 15, 7, 9, 2),
    (1, 2, 1, 1, 1, 1),
    (3, 2050, 80, 5, 3, 1),  # more channels than are summed at a time
    (1, 256, 100, 13, 17, 1),  # six registers of outputs and a part of one
    (7, 4098, 70, 1, 1, 1),
    (2, 34, 48, 8, 5, 3),
    (1, 1024, 320, 14, 14, 1),  # more weights than stay in the cache
]


def random_case(n, channels, outputs, height, width, stride=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator).bfloat16()
    weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None, stride=1):
    weight = weight.bfloat16().double()[:, :, None, None]
    return F.conv2d(x.double(), weight, None if bias is None else bias.double(), stride=stride)


def check_rounded(result, expected):
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=3e-5)


@needs_it
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_convolution(size):
    x, weight, bias = random_case(*size)
    stride, ready = size[-1], pointwise_weight(weight)
    expected = exact(x, weight, bias, stride)
    result = pointwise_conv(x, ready, bias, stride=stride, float32=True)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=3e-5)
    rounded = pointwise_conv(x, ready, bias, stride=stride)
    assert torch.equal(rounded, result.bfloat16())
    torch.testing.assert_close(
        pointwise_conv(x, ready, stride=stride, float32=True).double(),
        exact(x, weight, None, stride),
        rtol=0,
        atol=3e-5,
    )

    add = torch.randn(expected.shape)
    result = pointwise_conv(x, ready, bias, add, stride, relu=True, float32=True)
    torch.testing.assert_close(result.double(), (expected + add).relu(), rtol=0, atol=3e-5)
    add = add.bfloat16()
    check_rounded(pointwise_conv(x, ready, bias, add, stride, relu=True), (expected + add).relu())
    add = add.contiguous(memory_format=torch.channels_last)
    expected = expected + add
    assert add_pointwise_conv_(add, x, ready, bias, stride) is add
    check_rounded(add, expected)


@needs_it
@pytest.mark.parametrize("float32", [False, True], ids=["bf16", "float32"])
def test_adds_a_map_of_half_the_size(float32):
    x, weight, bias = random_case(2, 32, 48, 6, 10)
    add = torch.randn(2, 48, 3, 5).to(torch.float32 if float32 else torch.bfloat16)
    expected = exact(x, weight, bias) + F.interpolate(add.double(), scale_factor=2.0)
    result = pointwise_conv(x, pointwise_weight(weight), bias, add, float32=float32)
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=3e-5)


@needs_it
def test_layouts_and_threads_make_no_difference(thread_counts):
    x, weight, bias = random_case(3, 2052, 80, 21, 18)
    ready = pointwise_weight(weight)
    expected = pointwise_conv(x, ready, bias)
    assert torch.equal(pointwise_conv(x.contiguous(), ready, bias), expected)
    wider = torch.zeros(3, 2060, 21, 18).bfloat16().contiguous(memory_format=torch.channels_last)
    wider[:, 4:2056] = x
    assert torch.equal(pointwise_conv(wider[:, 4:2056], ready, bias), expected)
    for _ in thread_counts:
        assert torch.equal(pointwise_conv(x, ready, bias), expected)


@needs_it
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_cell(value):
    x, weight, bias = random_case(1, 32, 40, 9, 9)
    expected = pointwise_conv(x, pointwise_weight(weight), bias, relu=True)
    x[0, 5, 1, 1] = value
    result = pointwise_conv(x, pointwise_weight(weight), bias, relu=True)
    there = torch.zeros(9, 9, dtype=torch.bool)
    there[1, 1] = True
    assert torch.equal(result[..., ~there], expected[..., ~there])
    assert not result[..., 1, 1].isfinite().all()
    if value != value:
        assert result[..., 1, 1].isnan().all()


@needs_it
def test_nothing_gives_nothing():
    _, weight, _ = random_case(1, 16, 32, 1, 1)
    for size in ((0, 16, 5, 5), (2, 16, 0, 5)):
        x = torch.zeros(size).bfloat16()
        assert pointwise_conv(x, pointwise_weight(weight)).shape == (size[0], 32, *size[2:])
        total = torch.zeros(size[0], 32, *size[2:]).bfloat16().contiguous(memory_format=torch.channels_last)
        add_pointwise_conv_(total, x, pointwise_weight(weight))


@needs_it
def test_opcheck():
    x, weight, bias = random_case(1, 16, 33, 6, 5)
    values, outputs = pointwise_weight(weight)
    op = torch.ops.mrcnn_ext.pointwise_conv
    add = torch.randn(1, 33, 3, 3)
    torch.library.opcheck(op, (x, values, outputs, bias, None, 1, True, False))
    torch.library.opcheck(op, (x, values, outputs, bias, add, 2, True, True))
    add = add.bfloat16().contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.mrcnn_ext.add_pointwise_conv_, (add, x, values, bias, 2, True))


@needs_it
def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 32, 16, 6, 6)
    good = pointwise_weight(weight)
    for call, error, message in (
        (lambda: pointwise_conv(x[0], good), ValueError, r"\(N, C, H, W\), got \[32, 6, 6\]"),
        (
            lambda: pointwise_conv(x.float(), good),
            TypeError,
            "weight must be Float as input is, got BFloat16",
        ),
        (lambda: pointwise_conv(x[:, :31], good), ValueError, "even number of channels, got 31"),
        (lambda: pointwise_conv(x[:, :30], good), ValueError, "makes for 30 input and 16 output channels"),
        (lambda: pointwise_conv(x, PointwiseWeight(good.values, 17)), ValueError, "32 input and 17 output"),
        (
            lambda: pointwise_conv(x, PointwiseWeight(good.values.float(), 16)),
            TypeError,
            "weight must be BFloat16 as input is, got Float",
        ),
        (lambda: pointwise_conv(x, good, bias[:8]), ValueError, r"bias must be \(16,\) float32"),
        (lambda: pointwise_conv(x, good, stride=0), ValueError, "stride must be at least 1, got 0"),
        (
            lambda: pointwise_conv(x, good, add=x),
            ValueError,
            r"add must be BFloat16 and have the output's shape \[1, 16, 6, 6\] or half .*, got BFloat16 \[1, 32",
        ),
        (
            lambda: pointwise_conv(x, good, add=torch.zeros(1, 16, 6, 6)),
            ValueError,
            "add must be BFloat16 .* got Float",
        ),
        (
            lambda: add_pointwise_conv_(torch.zeros(1, 16, 6, 6).bfloat16(), x, good),
            ValueError,
            "sum must be BFloat16, channels-last and of the output's shape",
        ),
        (
            lambda: add_pointwise_conv_(x, x.double(), good),
            TypeError,
            "^add_pointwise_conv_: input must be bf",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match=r"even C, got \(16, 31\)"):
        pointwise_weight(weight[:, :31])
    with pytest.raises(ValueError, match=r"\(O, C, 1, 1\) with an even C, got \(16, 32, 3, 3\)"):
        pointwise_weight(torch.zeros(16, 32, 3, 3))


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    assert not bf16_kernels_are_available()
    x, weight, _ = random_case(1, 32, 16, 6, 6)
    with pytest.raises(NotImplementedError, match="pointwise_conv has no slower path, .* `pip install"):
        pointwise_conv(x, pointwise_weight(weight))
