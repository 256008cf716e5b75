"""Memory of large results, which is used again."""

import os
import sys

import pytest
import torch
from operators_alone import run_alone

from mrcnn_ext.accel.cpu_features import float32_kernels_are_available
from mrcnn_ext.ops.pointwise import pointwise_conv, pointwise_weight

resource = pytest.importorskip("resource")

pytestmark = [
    pytest.mark.skipif(
        not float32_kernels_are_available(),
        reason="the compiled operators are not built, or there is no AVX2",
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux"),
    pytest.mark.skipif(
        "libasan" in os.environ.get("LD_PRELOAD", ""), reason="no memory is kept under AddressSanitizer"
    ),
]
FAULTS = """
import resource, torch
from mrcnn_ext.ops.pointwise import pointwise_conv, pointwise_weight
ready = pointwise_weight(torch.ones(64, 2), torch.float32)
x = torch.zeros(1, 2, 300, 300)
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pointwise_conv(x, ready)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def result(x=None):
    x = torch.zeros(1, 2, 200, 200) if x is None else x
    return pointwise_conv(x, pointwise_weight(torch.ones(64, 2), torch.float32))


def test_memory_is_used_again_only_when_nobody_has_it():
    first = result()
    assert first.data_ptr() % 2**21 == 0
    view, place = first[0, 3], first.data_ptr()
    del first
    second = result(torch.ones(1, 2, 200, 200))  # the view still has the memory
    assert second.data_ptr() != place and not view.any()
    del view
    third = result()
    assert third.data_ptr() == place and not third.any() and (second == 2).all()
    del third
    other = result(torch.zeros(1, 2, 90, 200))  # which would leave more than half of it unused
    assert other.data_ptr() != place


def test_results_are_tensors_as_any():
    value = result(torch.ones(1, 2, 200, 200))
    value.resize_(1, 64, 300, 300)
    assert value.shape == (1, 64, 300, 300)
    copy = result(torch.ones(1, 2, 200, 200)).share_memory_()
    assert (copy == 2).all()


def test_calls_of_equal_size_fault_in_no_pages():
    x, ready = torch.zeros(1, 2, 300, 300), pointwise_weight(torch.ones(64, 2), torch.float32)
    assert min(faults_of(x, ready) for _ in range(4)) < 6


def faults_of(x, ready):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pointwise_conv(x, ready)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_nothing_is_kept_if_so_asked():
    ran = run_alone(FAULTS, MRCNN_EXT_KEEP_MB="0", OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 10


@pytest.mark.parametrize("value", ["", "many", "-1", "12 MB"])
def test_what_is_no_number_is_refused(value):
    ran = run_alone(FAULTS, MRCNN_EXT_KEEP_MB=value)
    expected = (
        f"the environment variable MRCNN_EXT_KEEP_MB must be a whole number of megabytes, got '{value}'"
    )
    assert ran.returncode != 0 and expected in ran.stderr
