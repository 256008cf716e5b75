"""Winograd's 3x3 convolutions against PyTorch's in float64, of float32 and of int16, forward and backward."""

import pytest
import torch
from operators_alone import run_alone
from torch.nn import functional as F

from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.winograd import (
    WinogradWeight,
    conv3x3,
    winograd_conv3x3,
    winograd_is_available,
    winograd_weight,
    winograd_weight_gradient,
)

pytestmark = pytest.mark.skipif(
    not winograd_is_available(), reason="the compiled operators are not built, or there is no AVX2"
)
# Largest error of a result in standard deviations of the exact ones: float32, int16.
LARGEST_ERROR = {False: 3e-5, True: 8e-3}
SIZES = [
    (1, 16, 16, 1, 1),
    (1, 16, 80, 4, 4),
    (2, 32, 16, 3, 9),
    (1, 48, 96, 13, 19),
    (7, 64, 32, 14, 14),
    (40, 16, 16, 7, 7),  # several rows of images on the canvas, the last one not full
    (1, 256, 64, 25, 38),
    (3, 16, 112, 2, 1),
]


def random_case(n, channels, outputs, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator).relu()
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * 0.1
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None):
    return F.conv2d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)


def error(result, expected):
    """Largest and mean square error in standard deviations."""
    difference = (result.double() - expected) / expected.std(correction=0)
    return difference.abs().max().item(), difference.square().mean().sqrt().item()


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_convolution(size, int16):
    x, weight, bias = random_case(*size)
    expected = exact(x, weight, bias)
    transformed = winograd_weight(weight, int16)
    result = winograd_conv3x3(x, transformed, bias)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert error(result, expected)[0] < LARGEST_ERROR[int16]

    add = torch.randn(expected.shape)
    result = winograd_conv3x3(x, transformed, bias, add, relu=True)
    assert error(result, (expected + add).relu())[0] < LARGEST_ERROR[int16]
    without = winograd_conv3x3(x, transformed)
    assert error(without, exact(x, weight))[0] < LARGEST_ERROR[int16]


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
def test_bf16_maps_are_rounded_once(int16):
    x, weight, bias = random_case(2, 64, 48, 20, 30)
    x, add = x.bfloat16(), torch.randn(2, 48, 20, 30).bfloat16()
    transformed = winograd_weight(weight, int16)
    result = winograd_conv3x3(x, transformed, bias, add, relu=True)
    assert result.dtype == torch.bfloat16
    wide = winograd_conv3x3(x.float(), transformed, bias, add.float(), relu=True)
    assert torch.equal(result, wide.bfloat16())


def test_int16_is_several_times_closer_than_bf16():
    x, weight, _ = random_case(1, 256, 64, 40, 40)
    x = x.bfloat16().float()  # as both find it
    expected = exact(x, weight)
    bf16 = F.conv2d(x.bfloat16(), weight.bfloat16(), padding=1)
    in_int16 = winograd_conv3x3(x, winograd_weight(weight, int16=True))
    assert 3 * error(in_int16, expected)[1] < error(bf16, expected)[1]
    float32 = winograd_conv3x3(x, winograd_weight(weight))
    assert error(float32, expected)[1] < 4 * error(F.conv2d(x, weight, padding=1), expected)[1] < 1e-5


@pytest.mark.parametrize("channels", [16, 512, 2048])
def test_no_sum_leaves_int32(channels):
    # Rows of V and U that are parallel, where Cauchy and Schwarz's bound is reached, and of one value alone.
    for x, weight in (
        (torch.ones(1, channels, 12, 12), torch.ones(16, channels, 3, 3)),
        (-torch.ones(1, channels, 12, 12), torch.ones(16, channels, 3, 3)),
        (
            torch.eye(channels)[0].view(1, -1, 1, 1).expand(1, -1, 12, 12),
            torch.eye(channels)[:16, :, None, None],
        ),
    ):
        weight = weight.expand(-1, -1, 3, 3)
        expected = exact(x, weight)
        result = winograd_conv3x3(x, winograd_weight(weight, int16=True))
        assert (result - expected).abs().max() < 3e-3 * expected.abs().max()


@pytest.mark.parametrize("scale", [1e-13, 1e-6, 1e6, 1e13])
def test_int16_has_no_range(scale):
    x, weight, _ = random_case(1, 32, 32, 9, 9)
    expected = exact(x, weight) * scale
    for case in ((x * scale, weight), (x, weight * scale)):
        result = winograd_conv3x3(case[0], winograd_weight(case[1], int16=True))
        assert error(result, expected)[0] < LARGEST_ERROR[True]
    # Below, rows are zeros.
    assert not winograd_conv3x3(x * 1e-20, winograd_weight(weight, int16=True)).any()
    assert not winograd_conv3x3(x, winograd_weight(weight * 0, int16=True)).any()


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so_and_near(int16, value):
    x, weight, bias = random_case(1, 32, 16, 24, 24)
    transformed = winograd_weight(weight, int16)
    expected = winograd_conv3x3(x, transformed, bias, relu=True)
    x[0, 5, 1, 1] = value
    result = winograd_conv3x3(x, transformed, bias, relu=True)
    assert not result[..., :3, :3].isfinite().any()
    # Of its tile and the next: the values of a tile share their inputs.
    assert torch.equal(result[..., 8:, :], expected[..., 8:, :])
    assert torch.equal(result[..., 8:], expected[..., 8:])


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
def test_layouts_and_threads_make_no_difference(int16, thread_counts):
    x, weight, bias = random_case(3, 32, 80, 21, 18)
    transformed = winograd_weight(weight, int16)
    expected = winograd_conv3x3(x, transformed, bias)
    assert torch.equal(winograd_conv3x3(x.contiguous(), transformed, bias), expected)
    wider = torch.zeros(3, 64, 21, 18).contiguous(memory_format=torch.channels_last)
    wider[:, 8:40] = x
    assert torch.equal(winograd_conv3x3(wider[:, 8:40], transformed, bias), expected)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, winograd_weight(last, int16), transformed))
    for _ in thread_counts:
        assert torch.equal(winograd_conv3x3(x, transformed, bias), expected)
        assert all(map(torch.equal, winograd_weight(weight, int16), transformed))


def test_nothing_gives_nothing():
    _, weight, _ = random_case(1, 16, 32, 1, 1)
    for size in ((0, 16, 5, 5), (2, 16, 0, 5)):
        assert winograd_conv3x3(torch.zeros(size), winograd_weight(weight)).shape == (size[0], 32, *size[2:])


@pytest.mark.parametrize("capability", ["avx2", "avx512", "default"])
def test_every_instruction_set(capability):
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    code = (
        "import torch; from test_winograd import *\n"
        "if not winograd_is_available(): print('none'); raise SystemExit\n"
        "for size in SIZES[:5]:\n"
        "    x, weight, bias = random_case(*size)\n"
        "    for int16 in (False, True):\n"
        "        result = winograd_conv3x3(x, winograd_weight(weight, int16), bias)\n"
        "        assert error(result, exact(x, weight, bias))[0] < LARGEST_ERROR[int16], (size, int16)\n"
        "for size in SIZES[2:5]:\n"
        "    x, grad, expected, _ = gradient_case(*size)\n"
        "    for int16 in (False, True):\n"
        "        result, _ = winograd_weight_gradient(grad, x, int16)\n"
        "        assert error(result, expected)[0] < LARGEST_ERROR[int16], (size, int16)\n"
        "print('done')"
    )
    run = run_alone(code, ATEN_CPU_CAPABILITY=capability)
    assert run.stdout.strip() == ("none" if capability == "default" else "done"), run.stderr


def gradient_case(n, channels, outputs, height, width):
    """Inputs, gradients, most of them small, and what float64 makes of the weight and the bias."""
    x, _, _ = random_case(n, channels, outputs, height, width)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(n, outputs, height, width, generator=generator)
    grad = grad * torch.rand(grad.shape, generator=generator) ** 4
    weight = torch.zeros(outputs, channels, 3, 3, dtype=torch.float64, requires_grad=True)
    exact(x, weight).backward(grad.double())
    return x, grad.contiguous(memory_format=torch.channels_last), weight.grad, grad.double().sum((0, 2, 3))


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
@pytest.mark.parametrize("size", [*SIZES, (2, 96, 48, 61, 47), (1, 16, 32, 190, 177)], ids=str)
def test_gradient_of_the_weight(size, int16):
    x, grad, expected, of_bias = gradient_case(*size)
    result, bias = winograd_weight_gradient(grad, x, int16, bias=True)
    assert result.dtype == torch.float32 and result.is_contiguous(memory_format=torch.channels_last)
    assert error(result, expected)[0] < LARGEST_ERROR[int16]
    torch.testing.assert_close(bias.double(), of_bias, rtol=1e-5, atol=1e-5 * grad.abs().sum().item() ** 0.5)
    again, nothing = winograd_weight_gradient(grad, x, int16)
    assert torch.equal(again, result) and nothing is None


def test_gradient_of_the_weight_is_closer_than_one_in_bf16():
    x, grad, _, _ = gradient_case(3, 64, 64, 40, 44)
    x, grad = x.bfloat16(), grad.bfloat16()
    weight = torch.zeros(64, 64, 3, 3, dtype=torch.float64, requires_grad=True)
    exact(x, weight).backward(grad.double())
    bf16 = torch.zeros(64, 64, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    F.conv2d(x, bf16, padding=1).backward(grad)
    result, _ = winograd_weight_gradient(grad, x, int16=True)
    assert 2 * error(result, weight.grad)[1] < error(bf16.grad, weight.grad)[1]


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
def test_gradient_of_the_weight_depends_on_neither_layout_nor_threads(int16, thread_counts):
    x, grad, _, _ = gradient_case(3, 32, 80, 41, 38)
    expected = winograd_weight_gradient(grad, x, int16, bias=True)
    given = winograd_weight_gradient(grad.contiguous(), x.contiguous(), int16, bias=True)
    assert all(map(torch.equal, given, expected))
    for _ in thread_counts:
        assert all(map(torch.equal, winograd_weight_gradient(grad, x, int16, bias=True), expected))


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_of_the_weight_keeps_what_is_not_finite(int16, value):
    x, grad, _, _ = gradient_case(1, 32, 16, 12, 12)
    expected, _ = winograd_weight_gradient(grad, x, int16)
    x[0, 5, 4, 4] = value
    result, _ = winograd_weight_gradient(grad, x, int16)
    assert not result[:, 5].isfinite().any()
    others = [channel for channel in range(32) if channel != 5]
    assert torch.equal(result[:, others], expected[:, others])


def test_gradient_of_the_weight_of_nothing_and_of_zeros():
    for size in ((0, 5, 5), (2, 0, 5)):
        of_weight, of_bias = winograd_weight_gradient(
            torch.zeros(size[0], 16, *size[1:]), torch.zeros(size[0], 32, *size[1:]), True, bias=True
        )
        assert of_weight.shape == (16, 32, 3, 3) and not of_weight.any() and not of_bias.any()
    x, grad, expected, _ = gradient_case(1, 32, 16, 9, 9)
    assert not winograd_weight_gradient(torch.zeros_like(grad), x, True)[0].any()
    scaled, _ = winograd_weight_gradient(grad * 1e-9, x * 1e9, True)
    assert error(scaled, expected)[0] < LARGEST_ERROR[True]


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
def test_addition_and_relu_have_gradients(int16):
    x, weight, bias = random_case(2, 32, 48, 9, 7)
    values = [x, weight, bias, torch.randn(2, 48, 9, 7)]
    ours = [value.clone().requires_grad_() for value in values]
    doubles = [value.double().requires_grad_() for value in values]
    result = conv3x3(*ours[:3], int16=int16, add=ours[3], relu=True)
    expected = (exact(*doubles[:3]) + doubles[3]).relu()
    assert error(result, expected)[0] < LARGEST_ERROR[int16]
    grad = torch.randn(expected.shape) * ((expected > 0.1) | (expected == 0))  # not where rounding decides
    result.backward(grad)
    expected.backward(grad.double())
    for value, of in zip(ours, doubles, strict=True):
        assert error(value.grad, of.grad)[0] < 2 * LARGEST_ERROR[int16]


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
@pytest.mark.parametrize("size", SIZES[2:5], ids=str)
def test_gradients(size, int16):
    case = random_case(*size)
    inputs = [tensor.clone().requires_grad_() for tensor in case]
    doubles = [tensor.double().requires_grad_() for tensor in case]
    result, expected = conv3x3(*inputs, int16=int16), exact(*doubles)
    grad = torch.randn(expected.shape)
    result.backward(grad)
    expected.backward(grad.double())
    for ours, exactly in zip(inputs, doubles, strict=True):
        assert error(ours.grad, exactly.grad)[0] < LARGEST_ERROR[int16]


def test_gradients_of_some_inputs_and_of_bf16():
    x, weight, bias = random_case(2, 16, 16, 6, 6)
    weight.requires_grad_()
    conv3x3(x.bfloat16(), weight, bias, int16=True).sum().backward()
    expected = weight.detach().double().requires_grad_()
    exact(x.bfloat16(), expected, bias).sum().backward()
    assert weight.grad.dtype == torch.float32 and bias.grad is None
    assert error(weight.grad, expected.grad)[0] < 0.03
    # A gradient that is expanded, not stored, and one of a frozen weight.
    x = x.requires_grad_()
    (of_x,) = torch.autograd.grad(conv3x3(x, weight.detach()).sum(), x)
    doubled = x.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(exact(doubled, weight.detach()).sum(), doubled)
    assert error(of_x, expected)[0] < LARGEST_ERROR[False]


@pytest.mark.parametrize("int16", [False, True], ids=["float32", "int16"])
def test_opcheck_and_compile(int16):
    x, weight, bias = random_case(1, 16, 32, 5, 6)
    values, scale = winograd_weight(weight, int16)
    torch.library.opcheck(torch.ops.mrcnn_ext.winograd_conv3x3, (x, values, scale, bias, None, True))
    gradients = (torch.randn(1, 32, 5, 6), x, int16)
    for bias_too in (False, True):
        torch.library.opcheck(torch.ops.mrcnn_ext.winograd_weight_gradient, (*gradients, bias_too))
    for transposed in (False, True):
        torch.library.opcheck(torch.ops.mrcnn_ext.winograd_weight, (weight, int16, transposed))

    def block(x, weight, bias):
        return conv3x3(x, weight, bias, int16).relu()

    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(*inputs).sum().backward()
    grads = [tensor.grad for tensor in inputs]
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    block(*inputs).sum().backward()
    for grad, tensor in zip(grads, inputs, strict=True):
        torch.testing.assert_close(grad, tensor.grad)


def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 32, 16, 5, 5)
    good = winograd_weight(weight)
    with pytest.raises(
        ValueError, match=r"weight must have shape \(O, C, 3, 3\) .* multiples of 16, got \[16, 24"
    ):
        winograd_weight(weight[:, :24])
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \[32, 5, 5\]"):
        winograd_conv3x3(x[0], good)
    with pytest.raises(TypeError, match="input must be float32 or bfloat16, got Double"):
        winograd_conv3x3(x.double(), good)
    with pytest.raises(ValueError, match="input must have a multiple of 16 channels, .*, got 24"):
        winograd_conv3x3(x[:, :24], good)
    with pytest.raises(ValueError, match="what winograd_weight makes for 16 input channels"):
        winograd_conv3x3(x[:, :16], good)
    with pytest.raises(TypeError, match="weight must be int8, int16 or float32, got Double"):
        winograd_conv3x3(x, WinogradWeight(good.values.double(), good.scale))
    with pytest.raises(ValueError, match=r"scale must be \(36, 16\) float32"):
        winograd_conv3x3(x, WinogradWeight(winograd_weight(weight, int16=True).values, good.scale))
    with pytest.raises(ValueError, match=r"bias must be \(16,\) float32 contiguous"):
        winograd_conv3x3(x, good, bias.double())
    with pytest.raises(
        ValueError, match=r"add must have the output's shape \[1, 16, 5, 5\] .*, got \[1, 32, 5, 5\]"
    ):
        winograd_conv3x3(x, good, bias, x)
    with pytest.raises(
        ValueError, match=r"grad must be \(N, O, H, W\) with input's N, H and W, got \[1, 32, 5, 4"
    ):
        winograd_weight_gradient(x[..., :4], x)
    with pytest.raises(TypeError, match="grad must be Float as input is, got BFloat16"):
        winograd_weight_gradient(x.bfloat16(), x)
    with pytest.raises(ValueError, match="channels must be multiples of 16, got 24 and 32"):
        winograd_weight_gradient(x, x[:, :24])


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    assert not winograd_is_available()
    with pytest.raises(NotImplementedError, match="winograd_weight has no slower path, .* `pip install"):
        winograd_weight(torch.zeros(16, 16, 3, 3))
