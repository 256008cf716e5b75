"""Every test of an operator runs on every backend and every device there is."""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for roi_align_reference

import emulated_cuda  # noqa: E402

from mrcnn_ext.ops import _extension  # noqa: E402


@contextmanager
def pooling_on(name):
    """Within it, RoI pooling runs on a backend or on a build of the emulated CUDA; skips the test for want of it."""
    if name == "compiled" and not _extension.is_available():
        pytest.skip("the compiled operators are not built")
    with pytest.MonkeyPatch.context() as patch:
        if name in emulated_cuda.BUILDS:
            if reason := emulated_cuda.why_not(name):
                pytest.skip(reason)
            emulated_cuda.load(name)
            patch.setattr(_extension, "BACKENDS", (*_extension.BACKENDS, name))
        with _extension.use_backend(name):
            yield name


@pytest.fixture(params=_extension.BACKENDS)
def backend(request):
    with pooling_on(request.param) as name:
        yield name


@pytest.fixture(params=emulated_cuda.BUILDS)
def emulated(request):
    """The CUDA operators on the emulated device."""
    with pooling_on(request.param) as name:
        yield name


@pytest.fixture(params=["compiled", *emulated_cuda.BUILDS])
def kernels(request):
    """The compiled operators and both builds of the emulated device."""
    with pooling_on(request.param) as name:
        yield name


@pytest.fixture(params=[*_extension.BACKENDS, "emulated_fused"])
def any_backend(request):
    """`backend`, and the emulated device as nvcc compiles for it: for what kernels compute.

    Not for autograd, export and their like, in which the emulated operators are no others.
    """
    with pooling_on(request.param) as name:
        yield name


@pytest.fixture
def thread_counts():
    """Numbers of threads, each set as it is taken."""
    before = torch.get_num_threads()

    def counts():
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            yield count

    yield counts()
    torch.set_num_threads(before)


@pytest.fixture(
    params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else ["cpu"]
)
def device(request):
    return torch.device(request.param)
