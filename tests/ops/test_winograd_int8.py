"""Winograd's 3x3 convolutions that multiply values of 8 bits, against PyTorch's in float64 and against the same
arithmetic in plain PyTorch."""

import pytest
import torch
from operators_alone import run_alone
from test_winograd import SIZES, error, exact, random_case
from torch.nn import functional as F

from mrcnn_ext.ops.winograd import (
    WinogradWeight,
    winograd_conv3x3,
    winograd_int8_is_available,
    winograd_int8_weight,
)

pytestmark = pytest.mark.skipif(
    not winograd_int8_is_available(),
    reason="the compiled operators are not built, or there is no AVX512-VNNI",
)
# In standard deviations of the exact results: the largest error of one, and the root of the mean square.
LARGEST, MEAN = 0.4, 0.05
POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def evaluations(degree):
    """Of polynomials with so many coefficients at the points and infinity, (6, degree) float64."""
    rows = [[point**power for power in range(degree)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (degree - 1) + [1.0]], dtype=torch.float64)


def emulated(x, weight):
    """What the kernel is to compute of one image, but for the rounding of its floats."""
    count, channels, height, width = x.shape
    cells = F.pad(x.double(), (1, 1 - width % -4, 1, 1 - height % -4)).unfold(2, 6, 4).unfold(3, 6, 4)
    to_input = torch.linalg.inv(evaluations(6)).T
    # The kernel's scale of the points: the rows of B^T end with one, as of monic polynomials.
    factor = to_input[:, 4].clone()
    factor[-1] = to_input[-1, 5]
    values = torch.einsum(
        "ai,ncyxij,bj->abnyxc", to_input / factor[:, None], cells, to_input / factor[:, None]
    )
    taps = evaluations(3) * factor[:, None]
    taps = torch.einsum("ai,ocij,bj->aboc", taps, weight.double(), taps)
    low, high = values.amin(-1, keepdim=True).clamp_max(0), values.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-30)
    zero = (-low / scale).round()
    values = ((values / scale + zero).round().clamp(0, 255) - zero) * scale
    scale = taps.abs().amax(-1, keepdim=True) / 127
    taps = (taps / scale).round() * scale
    products = torch.einsum("abnyxc,aboc->abnyxo", values, taps)
    results = torch.einsum("ai,abnyxo,bj->noyixj", evaluations(4), products, evaluations(4))
    return results.flatten(4).flatten(2, 3)[:, :, :height, :width]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_is_close_to_the_exact_convolution(size):
    x, weight, bias = random_case(*size)
    expected = exact(x, weight, bias)
    transformed = winograd_int8_weight(weight)
    assert transformed.values.dtype == torch.int8 and transformed.values.abs().max() == 127
    result = winograd_conv3x3(x, transformed, bias)
    assert result.shape == expected.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    largest, mean = error(result, expected)
    assert largest < LARGEST and mean < MEAN

    add = torch.randn(expected.shape)
    result = winograd_conv3x3(x, transformed, bias, add, relu=True)
    assert error(result, (expected + add).relu())[1] < MEAN
    assert error(winograd_conv3x3(x, transformed), exact(x, weight))[1] < MEAN


@pytest.mark.parametrize("size", [(1, 48, 32, 9, 13), (1, 256, 16, 8, 8), (1, 80, 80, 4, 6)], ids=str)
def test_rounds_as_documented(size):
    x, weight, _ = random_case(*size)
    x -= 0.2  # of both signs
    result = winograd_conv3x3(x, winograd_int8_weight(weight))
    # Values that are nearly halfway between two are rounded to either.
    assert error(result, emulated(x, weight))[1] < 1e-3 < 5e-3 < error(result, exact(x, weight))[1]


def test_bf16_maps_are_rounded_once():
    x, weight, bias = random_case(2, 64, 48, 20, 30)
    x, add = x.bfloat16(), torch.randn(2, 48, 20, 30).bfloat16()
    transformed = winograd_int8_weight(weight)
    result = winograd_conv3x3(x, transformed, bias, add, relu=True)
    wide = winograd_conv3x3(x.float(), transformed, bias, add.float(), relu=True)
    assert result.dtype == torch.bfloat16 and torch.equal(result, wide.bfloat16())


@pytest.mark.parametrize("channels", [16, 512, 4096])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(channels, sign):
    # Rows that are parallel: all products at an end of their range.
    x, weight = torch.full((1, channels, 9, 9), float(sign)), torch.ones(16, channels, 3, 3)
    expected = exact(x, weight)
    result = winograd_conv3x3(x, winograd_int8_weight(weight))
    assert (result - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("scale", [1e-13, 1e-6, 1e6, 1e13])
def test_has_no_range(scale):
    x, weight, _ = random_case(1, 32, 32, 9, 9)
    expected = exact(x, weight) * scale
    for case in ((x * scale, weight), (x, weight * scale)):
        assert error(winograd_conv3x3(case[0], winograd_int8_weight(case[1])), expected)[1] < MEAN
    # Below, rows are zeros.
    assert not winograd_conv3x3(x * 1e-33, winograd_int8_weight(weight)).any()
    assert not winograd_conv3x3(x, winograd_int8_weight(weight * 0)).any()


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_near(value):
    x, weight, bias = random_case(1, 32, 16, 24, 24)
    transformed = winograd_int8_weight(weight)
    expected = winograd_conv3x3(x, transformed, bias, relu=True)
    x[0, 5, 1, 1] = value
    result = winograd_conv3x3(x, transformed, bias, relu=True)
    assert not result[..., :3, :3].isfinite().any()
    # Of its tile and the next: the values of a tile share their inputs.
    assert torch.equal(result[..., 8:, :], expected[..., 8:, :])
    assert torch.equal(result[..., 8:], expected[..., 8:])
    weight[3, 7, 1, 1] = value
    result = winograd_conv3x3(expected.new_ones(1, 32, 5, 5), winograd_int8_weight(weight))
    assert result[:, 3].isnan().all() and result[:, :3].isfinite().all()


def test_layouts_and_threads_make_no_difference(thread_counts):
    x, weight, bias = random_case(3, 32, 80, 21, 18)
    transformed = winograd_int8_weight(weight)
    expected = winograd_conv3x3(x, transformed, bias)
    assert torch.equal(winograd_conv3x3(x.contiguous(), transformed, bias), expected)
    wider = torch.zeros(3, 64, 21, 18).contiguous(memory_format=torch.channels_last)
    wider[:, 8:40] = x
    assert torch.equal(winograd_conv3x3(wider[:, 8:40], transformed, bias), expected)
    for _ in thread_counts:
        assert torch.equal(winograd_conv3x3(x, transformed, bias), expected)
        assert all(map(torch.equal, winograd_int8_weight(weight), transformed))


def test_nothing_gives_nothing():
    _, weight, _ = random_case(1, 16, 32, 1, 1)
    for size in ((0, 16, 5, 5), (2, 16, 0, 5)):
        result = winograd_conv3x3(torch.zeros(size), winograd_int8_weight(weight))
        assert result.shape == (size[0], 32, *size[2:])


def test_opcheck():
    x, weight, bias = random_case(1, 16, 32, 5, 6)
    values, scale = winograd_int8_weight(weight)
    torch.library.opcheck(torch.ops.mrcnn_ext.winograd_conv3x3, (x, values, scale, bias, None, True))
    torch.library.opcheck(torch.ops.mrcnn_ext.winograd_int8_weight, (weight,))


def test_errors_name_the_argument():
    x, weight, _ = random_case(1, 32, 16, 5, 5)
    good = winograd_int8_weight(weight)
    with pytest.raises(
        ValueError, match=r"weight must have shape \(O, C, 3, 3\) .* multiples of 16, got \[16, 24"
    ):
        winograd_int8_weight(weight[:, :24])
    with pytest.raises(ValueError, match="what winograd_weight makes for 16 input channels"):
        winograd_conv3x3(x[:, :16], good)
    with pytest.raises(ValueError, match=r"scale must be \(72, 16\) float32 contiguous"):
        winograd_conv3x3(x, WinogradWeight(good.values, good.scale[:36]))


def test_other_processors_say_what_they_lack():
    code = (
        "import torch; from test_winograd_int8 import *\n"
        "assert not winograd_int8_is_available()\n"
        "x, weight, _ = random_case(1, 16, 16, 5, 5)\n"
        "try: winograd_conv3x3(x, winograd_int8_weight(weight))\n"
        "except NotImplementedError as error: print(error)"
    )
    run = run_alone(code, ATEN_CPU_CAPABILITY="avx2")
    assert "winograd_conv3x3: this processor has no AVX512-VNNI, which int8 needs" in run.stdout, run.stderr
