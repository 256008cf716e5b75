"""The stem of a ResNet in bf16 and float32 against PyTorch's layers in float64."""

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import cpu_has_avx512_bf16
from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.stem import stem_conv_pool, stem_weight

CAPABILITY = torch.backends.cpu.get_cpu_capability()
needs_it = pytest.mark.skipif(
    not (_extension.is_available() and cpu_has_avx512_bf16()) or CAPABILITY != "AVX512",
    reason="the compiled operators are not built, or there is no AVX512-BF16",
)
needs_float32 = pytest.mark.skipif(
    not _extension.is_available() or CAPABILITY not in ("AVX512", "AVX2"),
    reason="the compiled operators are not built, or there is no AVX2",
)
DTYPES = [
    pytest.param(torch.bfloat16, marks=needs_it, id="bfloat16"),
    pytest.param(torch.float32, marks=needs_float32, id="float32"),
]
# N, O, H, W
SIZES = [
    (1, 64, 32, 48),
    (2, 128, 37, 61),
    (1, 64, 1, 1),
    (1, 64, 5, 2),
    (3, 64, 63, 64),
    (1, 64, 301, 22),  # strips for several threads
    (1, 64, 9, 333),
]


def random_case(n, outputs, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, height, width, generator=generator)
    weight = torch.randn(outputs, 3, 7, 7, generator=generator) / 12
    return x, weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None, dtype=torch.bfloat16):
    x, weight = x.to(dtype).double(), weight.to(dtype).double()
    x = F.conv2d(x, weight, None if bias is None else bias.double(), stride=2, padding=3)
    return F.max_pool2d(x.relu(), 3, stride=2, padding=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_layers(size, dtype):
    x, weight, bias = random_case(*size)
    for offset in (bias, None, bias - 5):  # the last: mostly zeros
        result = stem_conv_pool(x, stem_weight(weight, dtype), offset)
        expected = exact(x, weight, offset, dtype)
        assert result.shape == expected.shape and result.dtype == dtype
        assert result.is_contiguous(memory_format=torch.channels_last)
        rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(result.double(), expected, rtol=rtol, atol=1e-5)


@needs_float32
def test_float32_keeps_what_is_not_finite_where_pytorch_does():
    x, weight, bias = random_case(1, 64, 64, 64)
    for value in (torch.nan, -torch.nan, torch.inf, -torch.inf):
        x[0, 1, 31, 30] = value
        result = stem_conv_pool(x, stem_weight(weight, torch.float32), bias)
        expected = F.conv2d(x, weight, bias, stride=2, padding=3).relu()
        expected = F.max_pool2d(expected, 3, stride=2, padding=1)
        assert not expected.isfinite().all()
        torch.testing.assert_close(result, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_layouts_and_threads_make_no_difference(thread_counts, dtype):
    x, weight, bias = random_case(2, 128, 131, 45)
    x = x.bfloat16().float()  # which every dtype here holds
    ready = stem_weight(weight, dtype)
    expected = stem_conv_pool(x, ready, bias)
    wider = torch.zeros(2, 3, 131, 60)
    wider[..., 7:52] = x
    narrow = x.bfloat16()
    for same in (x.contiguous(memory_format=torch.channels_last), wider[..., 7:52], narrow, narrow.double()):
        assert torch.equal(stem_conv_pool(same, ready, bias), expected)
    for _ in thread_counts:
        assert torch.equal(stem_conv_pool(x, ready, bias), expected)


@needs_it
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_it_is(value):
    x, weight, bias = random_case(1, 64, 64, 64)
    expected = stem_conv_pool(x, stem_weight(weight), bias)
    x[0, 1, 31, 30] = value
    result = stem_conv_pool(x, stem_weight(weight), bias)
    reached = exact(x, weight, bias)
    assert reached.isfinite().logical_not().any()
    # A product with infinity and no other is as it should be; with the zero that pads a row it is NaN, one
    # cell of the convolution further.
    near = torch.zeros(16, 16, dtype=torch.bool)
    near[6:10, 6:10] = True
    assert torch.equal(result[..., ~near], expected[..., ~near])
    assert (result.isfinite() <= reached.isfinite()).all()
    if value != value:
        assert result[reached.isnan()].isnan().all()


@needs_it
def test_nothing_gives_nothing():
    _, weight, _ = random_case(1, 64, 1, 1)
    for size, expected in (((0, 3, 9, 9), (0, 64, 3, 3)), ((2, 3, 0, 9), (2, 64, 0, 3))):
        for dtype in (torch.bfloat16, torch.float32):
            assert stem_conv_pool(torch.zeros(size), stem_weight(weight, dtype)).shape == expected


@needs_it
def test_opcheck():
    x, weight, bias = random_case(2, 128, 21, 18)
    op = torch.ops.mrcnn_ext.stem_conv_pool
    torch.library.opcheck(op, (x, stem_weight(weight), bias))
    torch.library.opcheck(op, (x.bfloat16(), stem_weight(weight), None))
    torch.library.opcheck(op, (x, stem_weight(weight, torch.float32), bias))


@needs_it
def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 64, 9, 9)
    good = stem_weight(weight)
    for call, error, message in (
        (lambda: stem_conv_pool(x[0], good), ValueError, r"input must be \(N, 3, H, W\), got \[3, 9, 9\]"),
        (lambda: stem_conv_pool(x[:, :2], good), ValueError, r"\(N, 3, H, W\), got \[1, 2, 9, 9\]"),
        (lambda: stem_conv_pool(x.byte(), good), TypeError, "input must be floating point, got Byte"),
        (lambda: stem_conv_pool(x, good.half()), TypeError, "weight must be bfloat16 or float32, got Half"),
        (
            lambda: stem_conv_pool(x, good.float()),
            ValueError,
            r"what stem_weight makes, got \[1, 7, 11, 64, 2\]",
        ),
        (
            lambda: stem_weight(weight, torch.half),
            ValueError,
            "must be torch.bfloat16 or torch.float32, got torch.float16",
        ),
        (
            lambda: stem_conv_pool(x, weight.bfloat16()),
            ValueError,
            r"what stem_weight makes, got \[64, 3, 7, 7\]",
        ),
        (lambda: stem_conv_pool(x, good, bias[:8]), ValueError, r"bias must be \(64,\) float32"),
        (lambda: stem_weight(weight[:32]), ValueError, r"O a multiple of 64, got \(32, 3, 7, 7\)"),
        (lambda: stem_weight(weight[..., :5]), ValueError, r"must be \(O, 3, 7, 7\) .*got \(64, 3, 7, 5\)"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        print(caught.value)


def test_without_the_compiled_operators_it_says_so(monkeypatch):
    monkeypatch.setattr(_extension, "_why_absent", "there is no compiled library")
    x, weight, _ = random_case(1, 64, 6, 6)
    with pytest.raises(NotImplementedError, match="stem_conv_pool has no slower path, .* `pip install"):
        stem_conv_pool(x, stem_weight(weight))
