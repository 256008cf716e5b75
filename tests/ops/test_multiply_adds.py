"""The loops of multiply-adds, whose rate the benchmark of convolutions divides by."""

import pytest
import torch
from operators_alone import run_alone

from mrcnn_ext.ops import _extension

pytestmark = pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")

SUMS = 12  # of each loop
# Products of an instruction by what PyTorch calls the processor; of those with more than one number some processors
# have the lesser, and none is no instruction.
PRODUCTS = {
    "AVX512": {torch.float32: {16}, torch.bfloat16: {0, 32}, torch.int16: {32}, torch.int8: {32, 64}},
    "AVX2": {torch.float32: {8}, torch.bfloat16: {0}, torch.int16: {16}, torch.int8: {16}},
}
NONE = dict.fromkeys(PRODUCTS["AVX2"], {0})


def products(dtype, repeats):
    try:
        return torch.ops.mrcnn_ext.multiply_adds(torch.zeros(1, dtype=dtype), repeats)
    except NotImplementedError as error:
        assert "this processor has no instruction for" in str(error)
        return 0


def check(capability):
    assert torch.backends.cpu.get_cpu_capability() == capability
    for dtype, expected in PRODUCTS.get(capability, NONE).items():
        assert products(dtype, 0) == 0
        each, rest = divmod(products(dtype, 7), 7 * SUMS * torch.get_num_threads())
        assert each in expected and not rest, dtype


def test_they_count_what_they_multiply(thread_counts):
    for _ in thread_counts:
        check(torch.backends.cpu.get_cpu_capability())
    with pytest.raises(NotImplementedError, match="multiply_adds: .* no instruction for Double"):
        torch.ops.mrcnn_ext.multiply_adds(torch.zeros(1, dtype=torch.float64), 1)


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_every_instruction_set(capability):
    if torch.backends.cpu.get_cpu_capability() not in PRODUCTS:
        pytest.skip("this processor has no AVX2")
    code = f"from test_multiply_adds import check; check({capability.upper()!r})"
    ran = run_alone(code, ATEN_CPU_CAPABILITY=capability)
    assert ran.returncode == 0, ran.stderr
