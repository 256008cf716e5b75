"""Large results of the compiled operators: memory that has become free is used again, and no other."""

import threading

import pytest
import torch

from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.pointwise import pointwise_conv, pointwise_weight

pytestmark = pytest.mark.skipif(
    not _extension.is_available() or torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"),
    reason="the compiled operators are not built, or there is no AVX2",
)


def large(outputs=64, value=1.0):
    """23 MB for 64 outputs, of one value."""
    x = torch.full((1, 16, 300, 300), value / 16).contiguous(memory_format=torch.channels_last)
    return pointwise_conv(x, pointwise_weight(torch.ones(outputs, 16, 1, 1), torch.float32))


def test_free_memory_is_used_again():
    first = large()
    place = first.data_ptr()
    first.add_(1)
    del first
    again = large(value=3.0)
    assert again.data_ptr() == place and (again == 3).all()


def test_memory_in_use_is_nobody_elses():
    kept = large(value=2.0)
    view = kept[:, :1]
    del kept
    others = [large(value=float(value)) for value in range(3)]
    assert (view == 2).all() and len({x.data_ptr() for x in others}) == 3
    assert all((x == value).all() for value, x in enumerate(others))


def test_other_sizes_have_memory_of_their_own():
    place = large(64).data_ptr()
    other = large(80)
    assert other.data_ptr() != place and (other == 1).all()
    other.resize_(2, 80, 300, 300)  # as of any tensor
    assert other.shape == (2, 80, 300, 300)


def test_threads_may_make_and_drop_them_at_once():
    wrong = []

    def work(value):
        for _ in range(4):
            x = large(value=value)
            if not (x == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
