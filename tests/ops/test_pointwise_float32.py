"""1x1 convolutions and linear layers in float32 against PyTorch's in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import float32_kernels_are_available
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.pointwise import PointwiseWeight, add_pointwise_conv_, pointwise_conv, pointwise_weight

needs_it = pytest.mark.skipif(
    not float32_kernels_are_available(), reason="the compiled operators are not built, or there is no AVX2"
)
# N, C, O, H, W, stride
SIZES = [
    (1, 64, 256, 10, 12, 1),
    (2, 5, 15, 7, 9, 2),
    (1, 1, 1, 1, 1, 1),
    (3, 1027, 80, 5, 3, 1),  # more channels than are multiplied at a time
    (1, 256, 100, 13, 17, 1),  # six registers of outputs and a part of one
    (7, 2049, 70, 1, 1, 1),
    (2, 33, 48, 8, 5, 3),
    (1, 1024, 320, 14, 14, 1),  # more weights than stay in the cache
]
CLOSE = {"rtol": 0, "atol": 2e-5}


def random_case(n, channels, outputs, height, width, stride=1):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def ready_for(weight):
    return pointwise_weight(weight, torch.float32)


def exact(x, weight, bias=None, stride=1):
    weight = weight.double()[:, :, None, None]
    return F.conv2d(x.double(), weight, None if bias is None else bias.double(), stride=stride)


@needs_it
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_convolution(size):
    x, weight, bias = random_case(*size)
    stride, ready = size[-1], ready_for(weight)
    expected = exact(x, weight, bias, stride)
    result = pointwise_conv(x, ready, bias, stride=stride)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, **CLOSE)
    without_bias = pointwise_conv(x, ready, stride=stride, float32=True)
    torch.testing.assert_close(without_bias.double(), exact(x, weight, None, stride), **CLOSE)

    add = torch.randn(expected.shape)
    result = pointwise_conv(x, ready, bias, add, stride, relu=True)
    torch.testing.assert_close(result.double(), (expected + add).relu(), **CLOSE)
    add = add.contiguous(memory_format=torch.channels_last)
    expected = expected + add
    assert add_pointwise_conv_(add, x, ready, bias, stride) is add
    torch.testing.assert_close(add.double(), expected, **CLOSE)


@needs_it
def test_adds_a_map_of_half_the_size():
    x, weight, bias = random_case(2, 31, 48, 6, 10)
    add = torch.randn(2, 48, 3, 5)
    expected = exact(x, weight, bias) + F.interpolate(add.double(), scale_factor=2.0)
    torch.testing.assert_close(pointwise_conv(x, ready_for(weight), bias, add).double(), expected, **CLOSE)


@needs_it
@pytest.mark.parametrize("size", [(3, 1027, 80, 21, 18), (3, 70, 330, 1, 1)], ids=["rows", "outputs"])
def test_layouts_and_threads_make_no_difference(thread_counts, size):
    x, weight, bias = random_case(*size)
    ready = ready_for(weight)
    expected = pointwise_conv(x, ready, bias)
    assert torch.equal(pointwise_conv(x.contiguous(), ready, bias), expected)
    channels = size[1]
    wider = torch.zeros(3, channels + 8, *size[3:]).contiguous(memory_format=torch.channels_last)
    wider[:, 4 : 4 + channels] = x
    assert torch.equal(pointwise_conv(wider[:, 4 : 4 + channels], ready, bias), expected)
    for _ in thread_counts:
        assert torch.equal(pointwise_conv(x, ready, bias), expected)


@needs_it
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_cell(value):
    x, weight, bias = random_case(1, 32, 40, 9, 9)
    expected = pointwise_conv(x, ready_for(weight), bias, relu=True)
    x[0, 5, 1, 1] = value
    result = pointwise_conv(x, ready_for(weight), bias, relu=True)
    there = torch.zeros(9, 9, dtype=torch.bool)
    there[1, 1] = True
    assert torch.equal(result[..., ~there], expected[..., ~there])
    assert not result[..., 1, 1].isfinite().all()
    if value != value:
        assert result[..., 1, 1].isnan().all()


@needs_it
def test_nothing_gives_nothing():
    _, weight, _ = random_case(1, 15, 32, 1, 1)
    for size in ((0, 15, 5, 5), (2, 15, 0, 5)):
        x = torch.zeros(size)
        assert pointwise_conv(x, ready_for(weight)).shape == (size[0], 32, *size[2:])
        total = torch.zeros(size[0], 32, *size[2:]).contiguous(memory_format=torch.channels_last)
        add_pointwise_conv_(total, x, ready_for(weight))


@needs_it
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of a mapping is Linux's here")
@pytest.mark.parametrize("capability", ["avx512", "avx2"])
def test_stays_within_its_memory(capability):
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    program = Path(__file__).with_name("pointwise_float32_within_bounds.py")
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    ran = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stdout.strip()) == (0, capability.upper()), ran.stderr


@needs_it
def test_opcheck():
    x, weight, bias = random_case(1, 15, 33, 6, 5)
    values, outputs = ready_for(weight)
    op = torch.ops.mrcnn_ext.pointwise_conv
    torch.library.opcheck(op, (x, values, outputs, bias, None, 1, True, False))
    add = torch.randn(1, 33, 3, 3).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(op, (x, values, outputs, bias, add, 2, True, True))
    torch.library.opcheck(torch.ops.mrcnn_ext.add_pointwise_conv_, (add, x, values, bias, 2, True))


@needs_it
def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 31, 16, 6, 6)
    good = ready_for(weight)
    for call, error, message in (
        (
            lambda: pointwise_conv(x.double(), good),
            TypeError,
            "input must be bfloat16 or float32, got Double",
        ),
        (lambda: pointwise_conv(x[:, :30], good), ValueError, "makes for 30 input and 16 output channels"),
        (
            lambda: pointwise_conv(x, PointwiseWeight(good.values.bfloat16(), 16)),
            TypeError,
            "weight must be Float as input is, got BFloat16",
        ),
        (lambda: pointwise_conv(x, good, bias.double()), ValueError, r"bias must be \(16,\) float32"),
        (
            lambda: pointwise_conv(x, good, add=torch.zeros(1, 16, 6, 6).bfloat16()),
            ValueError,
            "add must be Float .* got BFloat16",
        ),
        (
            lambda: add_pointwise_conv_(torch.zeros(1, 16, 6, 6).bfloat16(), x, good),
            ValueError,
            "sum must be Float, channels-last and of the output's shape",
        ),
        (lambda: pointwise_weight(weight, torch.half), ValueError, "torch.bfloat16 or torch.float32, got"),
        (lambda: pointwise_weight(weight[0], torch.float32), ValueError, r"\(O, C, 1, 1\), got \(31,\)"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_without_the_compiled_operators_it_is_not_chosen(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    assert not float32_kernels_are_available()
