"""1x1 convolutions and linear layers in float32 and bf16 against PyTorch's in float64."""

import sys

import pytest
import torch
from operators_alone import run_alone
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import (
    bf16_kernels_are_available,
    cpu_has_avx512_bf16,
    float32_kernels_are_available,
)
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.pointwise import (
    PointwiseWeight,
    PreparedPointwise,
    add_pointwise_conv_,
    conv1x1,
    pointwise_conv,
    pointwise_weight,
)

needs_float32 = pytest.mark.skipif(
    not float32_kernels_are_available(), reason="the compiled operators are not built, or there is no AVX2"
)
needs_bf16 = pytest.mark.skipif(
    not (_extension.is_available() and cpu_has_avx512_bf16())
    or torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="the compiled operators are not built, or there is no AVX512-BF16",
)
BOTH = pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=needs_float32), pytest.param(torch.bfloat16, marks=needs_bf16)],
    ids=["float32", "bf16"],
)
# N, C, O, H, W, stride; of float32 one channel less.
SIZES = [
    (1, 64, 256, 10, 12, 1),
    (2, 6, 15, 7, 9, 2),
    (1, 2, 1, 1, 1, 1),
    (3, 2052, 80, 5, 3, 1),  # more channels than are multiplied at a time
    (1, 256, 100, 13, 17, 1),  # six registers of outputs and a part of one
    (7, 4098, 70, 1, 1, 1),
    (2, 34, 48, 8, 5, 3),
    (1, 1024, 320, 14, 14, 1),  # more weights than stay in the cache
]
CLOSE = {"rtol": 0, "atol": 3e-5}
ROUNDED = {torch.float32: CLOSE, torch.bfloat16: {"rtol": 2**-8, "atol": 3e-5}}


def random_case(dtype, n, channels, outputs, height, width, stride=1):
    channels -= dtype == torch.float32
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, height, width, generator=generator).to(dtype)
    weight = torch.randn(outputs, channels, generator=generator) / channels**0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None, stride=1):
    weight = weight.to(x.dtype).double()[:, :, None, None]
    return F.conv2d(x.double(), weight, None if bias is None else bias.double(), stride=stride)


@BOTH
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_convolution(size, dtype):
    x, weight, bias = random_case(dtype, *size)
    stride, ready = size[-1], pointwise_weight(weight, dtype)
    expected = exact(x, weight, bias, stride)
    result = pointwise_conv(x, ready, bias, stride=stride, float32=True)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.double(), expected, **CLOSE)
    assert torch.equal(pointwise_conv(x, ready, bias, stride=stride), result.to(dtype))
    without_bias = pointwise_conv(x, ready, stride=stride, float32=True)
    torch.testing.assert_close(without_bias.double(), exact(x, weight, None, stride), **CLOSE)

    add = torch.randn(expected.shape)
    result = pointwise_conv(x, ready, bias, add, stride, relu=True, float32=True)
    torch.testing.assert_close(result.double(), (expected + add).relu(), **CLOSE)
    add = add.to(dtype)
    result = pointwise_conv(x, ready, bias, add, stride, relu=True)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), (expected + add).relu(), **ROUNDED[dtype])
    add = add.contiguous(memory_format=torch.channels_last)
    expected = expected + add
    assert add_pointwise_conv_(add, x, ready, bias, stride) is add
    torch.testing.assert_close(add.double(), expected, **ROUNDED[dtype])


@BOTH
@pytest.mark.parametrize("float32", [False, True], ids=["as_the_input", "to_float32"])
def test_adds_a_map_of_half_the_size(dtype, float32):
    x, weight, bias = random_case(dtype, 2, 32, 48, 6, 10)
    add = torch.randn(2, 48, 3, 5).to(torch.float32 if float32 else dtype)
    expected = exact(x, weight, bias) + F.interpolate(add.double(), scale_factor=2.0)
    result = pointwise_conv(x, pointwise_weight(weight, dtype), bias, add, float32=float32)
    torch.testing.assert_close(result.double(), expected, **ROUNDED[result.dtype])


@BOTH
@pytest.mark.parametrize("size", [(3, 2052, 80, 21, 18), (3, 70, 330, 1, 1)], ids=["rows", "outputs"])
def test_layouts_and_threads_make_no_difference(thread_counts, size, dtype):
    x, weight, bias = random_case(dtype, *size)
    ready = pointwise_weight(weight, dtype)
    expected = pointwise_conv(x, ready, bias)
    assert torch.equal(pointwise_conv(x.contiguous(), ready, bias), expected)
    channels = x.shape[1]
    wider = torch.zeros(3, channels + 8, *size[3:], dtype=dtype).contiguous(memory_format=torch.channels_last)
    wider[:, 4 : 4 + channels] = x
    assert torch.equal(pointwise_conv(wider[:, 4 : 4 + channels], ready, bias), expected)
    for _ in thread_counts:
        assert torch.equal(pointwise_conv(x, ready, bias), expected)


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_in_its_cell(value, dtype):
    x, weight, bias = random_case(dtype, 1, 32, 40, 9, 9)
    ready = pointwise_weight(weight, dtype)
    expected = pointwise_conv(x, ready, bias, relu=True)
    x[0, 5, 1, 1] = value
    result = pointwise_conv(x, ready, bias, relu=True)
    there = torch.zeros(9, 9, dtype=torch.bool)
    there[1, 1] = True
    assert torch.equal(result[..., ~there], expected[..., ~there])
    assert not result[..., 1, 1].isfinite().all()
    if value != value:
        assert result[..., 1, 1].isnan().all()


@BOTH
def test_nothing_gives_nothing(dtype):
    _, weight, _ = random_case(dtype, 1, 16, 32, 1, 1)
    ready, channels = pointwise_weight(weight, dtype), weight.shape[1]
    for count, height in ((0, 5), (2, 0)):
        x = torch.zeros(count, channels, height, 5, dtype=dtype)
        assert pointwise_conv(x, ready).shape == (count, 32, height, 5)
        total = torch.zeros(count, 32, height, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
        add_pointwise_conv_(total, x, ready)


@needs_float32
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of a mapping is Linux's here")
@pytest.mark.parametrize("capability", ["avx512", "avx2"])
def test_stays_within_its_memory_on_every_instruction_set(capability):
    """Those of int8 too; results are compared with float64 there."""
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    ran = run_alone("import pointwise_within_bounds as it; it.main()", ATEN_CPU_CAPABILITY=capability)
    assert (ran.returncode, ran.stdout.strip()) == (0, capability.upper()), ran.stderr


@BOTH
def test_opcheck(dtype):
    x, weight, bias = random_case(dtype, 1, 16, 33, 6, 5)
    values, outputs = pointwise_weight(weight, dtype)
    op = torch.ops.mrcnn_ext.pointwise_conv
    add = torch.randn(1, 33, 3, 3)
    torch.library.opcheck(op, (x, values, outputs, bias, None, 1, True, False))
    torch.library.opcheck(op, (x, values, outputs, bias, add, 2, True, True))
    add = add.to(dtype).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.mrcnn_ext.add_pointwise_conv_, (add, x, values, bias, 2, True))


@BOTH
def test_errors_name_the_argument(dtype):
    x, weight, bias = random_case(dtype, 1, 32, 16, 6, 6)
    good, channels = pointwise_weight(weight, dtype), weight.shape[1]
    name, other = ("Float", torch.bfloat16) if dtype == torch.float32 else ("BFloat16", torch.float32)
    other_name = "BFloat16" if dtype == torch.float32 else "Float"
    sum_ = torch.zeros(1, 16, 6, 6)
    for call, error, message in (
        (lambda: pointwise_conv(x[0], good), ValueError, rf"\(N, C, H, W\), got \[{channels}, 6, 6\]"),
        (
            lambda: pointwise_conv(x.double(), good),
            TypeError,
            "input must be bfloat16 or float32, got Double",
        ),
        (lambda: pointwise_conv(x[:, :30], good), ValueError, "makes for 30 input and 16 output channels"),
        (
            lambda: pointwise_conv(x, PointwiseWeight(good.values, 17)),
            ValueError,
            f"{channels} input and 17 output",
        ),
        (
            lambda: pointwise_conv(x, PointwiseWeight(good.values.to(other), 16)),
            TypeError,
            f"weight must be {name} as input is, got {other_name}",
        ),
        (lambda: pointwise_conv(x, good, bias[:8]), ValueError, r"bias must be \(16,\) float32"),
        (lambda: pointwise_conv(x, good, bias.double()), ValueError, r"bias must be \(16,\) float32"),
        (lambda: pointwise_conv(x, good, stride=0), ValueError, "stride must be at least 1, got 0"),
        (
            lambda: pointwise_conv(x, good, add=x),
            ValueError,
            rf"add must be {name} and have the output's shape \[1, 16, 6, 6\] or half .*, got {name} "
            rf"\[1, {channels}",
        ),
        (
            lambda: pointwise_conv(x, good, add=sum_.to(other)),
            ValueError,
            f"add must be {name} .* got {other_name}",
        ),
        (
            lambda: add_pointwise_conv_(sum_.to(dtype), x, good),
            ValueError,
            f"sum must be {name}, channels-last and of the output's shape",
        ),
        (
            lambda: add_pointwise_conv_(x, x.double(), good),
            TypeError,
            "^add_pointwise_conv_: input must be bf",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


@needs_bf16
def test_bf16_takes_an_even_number_of_channels():
    x, weight, _ = random_case(torch.bfloat16, 1, 32, 16, 6, 6)
    with pytest.raises(ValueError, match="even number of channels, got 31"):
        pointwise_conv(x[:, :31], pointwise_weight(weight))


def test_weights_that_cannot_be():
    for weight, dtype, message in (
        (torch.zeros(16, 31), torch.bfloat16, r"even C, got \(16, 31\)"),
        (torch.zeros(16, 32, 3, 3), torch.bfloat16, r"\(O, C, 1, 1\) with an even C, got \(16, 32, 3, 3\)"),
        (torch.zeros(16, 32), torch.half, "torch.bfloat16 or torch.float32, got"),
        (torch.zeros(31), torch.float32, r"\(O, C, 1, 1\), got \(31,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            pointwise_weight(weight, dtype)


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    assert not bf16_kernels_are_available() and not float32_kernels_are_available()
    x, weight, _ = random_case(torch.bfloat16, 1, 32, 16, 6, 6)
    with pytest.raises(NotImplementedError, match="pointwise_conv has no slower path, .* `pip install"):
        pointwise_conv(x, pointwise_weight(weight))


@BOTH
@pytest.mark.parametrize("stride, relu", [(1, True), (1, False), (2, True)])
def test_gradients(dtype, stride, relu):
    x, weight, bias = random_case(dtype, 2, 33 if dtype == torch.float32 else 32, 48, 8, 11)
    add = torch.randn(2, 48, -(-8 // stride), -(-11 // stride)).to(dtype)
    weight = weight.to(dtype).float()[:, :, None, None]
    values = [x, weight, bias, add]
    ours = [value.clone().requires_grad_() for value in values]
    doubles = [value.double().requires_grad_() for value in values]
    result = conv1x1(*ours, stride=stride, relu=relu)
    expected = F.conv2d(*doubles[:3], stride=stride) + doubles[3]
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(result, expected.to(dtype), **ROUNDED[dtype])
    # Not where rounding decides whether the ReLU lets the gradient through.
    grad = (torch.randn(expected.shape) * ((expected == 0) | (expected.abs() > 0.1))).to(dtype)
    result.backward(grad)
    expected.backward(grad.double())
    largest = 1e-4 if dtype == torch.float32 else 2e-2
    for value, of in zip(ours, doubles, strict=True):
        assert value.grad.dtype == value.dtype
        assert (value.grad.double() - of.grad).abs().max() < largest * of.grad.abs().max()


@needs_float32
def test_gradients_of_some_and_of_weights_made_before():
    x, weight, _ = random_case(torch.float32, 1, 17, 32, 5, 6)
    weight = weight[:, :, None, None].requires_grad_()
    prepared = PreparedPointwise(weight, torch.float32)
    conv1x1(x, weight, prepared=prepared).sum().backward()
    expected = weight.detach().double().requires_grad_()
    F.conv2d(x.double(), expected).sum().backward()
    torch.testing.assert_close(weight.grad, expected.grad.float())
    x.requires_grad_()
    (of_x,) = torch.autograd.grad(conv1x1(x, weight.detach(), prepared=prepared).sum(), x)
    torch.testing.assert_close(of_x, weight.detach().sum((0, 2, 3)).view(1, -1, 1, 1).expand(x.shape))
    assert prepared.get(transposed=True) is prepared.get(transposed=True)
