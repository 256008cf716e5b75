"""The stem of a ResNet in float32 against PyTorch's layers in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from mrcnn_ext.accel.cpu_features import float32_kernels_are_available
from mrcnn_ext.ops.stem import stem_conv_pool, stem_weight

needs_it = pytest.mark.skipif(
    not float32_kernels_are_available(), reason="the compiled operators are not built, or there is no AVX2"
)
# N, O, H, W
SIZES = [
    (1, 64, 32, 48),
    (2, 128, 37, 61),
    (1, 64, 1, 1),
    (1, 64, 5, 2),
    (1, 64, 301, 22),  # strips for several threads
    (1, 64, 9, 333),
]


def random_case(n, outputs, height, width):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, height, width, generator=generator)
    weight = torch.randn(outputs, 3, 7, 7, generator=generator) / 12
    return x, weight, torch.randn(outputs, generator=generator)


def exact(x, weight, bias=None):
    bias = None if bias is None else bias.double()
    x = F.conv2d(x.double(), weight.double(), bias, stride=2, padding=3)
    return F.max_pool2d(x.relu(), 3, stride=2, padding=1)


def ready_for(weight):
    return stem_weight(weight, torch.float32)


@needs_it
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_exact_layers(size):
    x, weight, bias = random_case(*size)
    for offset in (bias, None, bias - 5):  # the last: mostly zeros
        result = stem_conv_pool(x, ready_for(weight), offset)
        expected = exact(x, weight, offset)
        assert result.shape == expected.shape and result.dtype == torch.float32
        assert result.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=1e-5)


@needs_it
def test_layouts_and_threads_make_no_difference(thread_counts):
    x, weight, bias = random_case(2, 128, 131, 45)
    expected = stem_conv_pool(x, ready_for(weight), bias)
    wider = torch.zeros(2, 3, 131, 60)
    wider[..., 7:52] = x
    for same in (x.contiguous(memory_format=torch.channels_last), wider[..., 7:52], x.double()):
        assert torch.equal(stem_conv_pool(same, ready_for(weight), bias), expected)
    for _ in thread_counts:
        assert torch.equal(stem_conv_pool(x, ready_for(weight), bias), expected)


@needs_it
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_where_it_is(value):
    x, weight, bias = random_case(1, 64, 64, 64)
    expected = stem_conv_pool(x, ready_for(weight), bias)
    x[0, 1, 31, 30] = value
    result, reached = stem_conv_pool(x, ready_for(weight), bias), exact(x, weight, bias)
    assert reached.isfinite().logical_not().any()
    assert torch.equal(result.isnan(), reached.isnan()) and torch.equal(result.isinf(), reached.isinf())
    elsewhere = reached.isfinite() & (reached == exact(x.nan_to_num(0, 0, 0), weight, bias))
    assert torch.equal(result[elsewhere], expected[elsewhere]) and elsewhere.float().mean() > 0.9


@needs_it
def test_nothing_gives_nothing_and_opcheck():
    x, weight, bias = random_case(2, 128, 21, 18)
    assert stem_conv_pool(torch.zeros(0, 3, 9, 9), ready_for(weight)).shape == (0, 128, 3, 3)
    torch.library.opcheck(torch.ops.mrcnn_ext.stem_conv_pool, (x, ready_for(weight), bias))


@needs_it
def test_errors_name_the_argument():
    x, weight, bias = random_case(1, 64, 9, 9)
    with pytest.raises(ValueError, match=r"what stem_weight makes, got \[1, 7, 11, 64, 2\]"):
        stem_conv_pool(x, stem_weight(weight).float())
    with pytest.raises(ValueError, match="torch.bfloat16 or torch.float32, got torch.float16"):
        stem_weight(weight, torch.half)


CHECK = """
import torch
from guarded_memory import guarded
from test_stem_float32 import exact, random_case, ready_for
from mrcnn_ext.ops.stem import stem_conv_pool
for size in ((2, 128, 37, 61), (1, 64, 1, 1), (1, 64, 9, 333)):
    x, weight, bias = random_case(*size)
    result = stem_conv_pool(guarded(x), guarded(ready_for(weight)), guarded(bias))
    torch.testing.assert_close(result.double(), exact(x, weight, bias), rtol=0, atol=1e-5)
print(torch.backends.cpu.get_cpu_capability())
"""


@needs_it
@pytest.mark.skipif(sys.platform != "linux", reason="mprotect of a mapping is Linux's here")
@pytest.mark.parametrize("capability", ["avx512", "avx2"])
def test_stays_within_its_memory(capability):
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    ran = subprocess.run(
        [sys.executable, "-c", CHECK],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, capability.upper()), ran.stderr
