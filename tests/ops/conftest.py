"""Every test of an operator runs on every backend and every device there is."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for roi_align_reference

import emulated_cuda  # noqa: E402

from mrcnn_ext.ops import _extension  # noqa: E402


@pytest.fixture(params=[*_extension.BACKENDS, *emulated_cuda.BUILDS])
def backend(request, monkeypatch):
    if request.param == "compiled" and not _extension.is_available():
        pytest.skip("the compiled operators are not built")
    if request.param in emulated_cuda.BUILDS:
        if reason := emulated_cuda.why_not(request.param):
            pytest.skip(reason)
        emulated_cuda.load(request.param)
        monkeypatch.setattr(_extension, "BACKENDS", (*_extension.BACKENDS, request.param))
    with _extension.use_backend(request.param):
        yield request.param


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


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    return torch.device(request.param)
