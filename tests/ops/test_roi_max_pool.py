"""The max modes of RoI pooling with the places of the maxima kept for the backward pass."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from roi_align_reference import roi_align_reference

from mrcnn_ext.layers import roi_align_pyramid
from mrcnn_ext.ops import _extension, roi_align
from mrcnn_ext.ops.roi_align_eager import MAX_MODES

pytestmark = pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
OP = torch.ops.mrcnn_ext
FORMATS = [torch.contiguous_format, torch.channels_last]


def random_boxes(count, width, height, seed=0):
    """Boxes inside, across and outside of two images."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=generator) * extent * 1.2 - extent * 0.2
    side = torch.rand(count, 2, generator=generator) ** 2 * extent
    image = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + side], dim=1)


def pyramid(channels, dtype, memory_format, requires_grad=False):
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, channels, 40 >> k, 56 >> k, generator=generator) for k in range(2)]
    return [x.to(dtype).contiguous(memory_format=memory_format).requires_grad_(requires_grad) for x in levels]


@pytest.mark.parametrize("mode", MAX_MODES)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_is_roi_align_and_its_backward_to_the_bit(mode, memory_format, dtype):
    """roi_align looks for the maxima again; channels for whole registers, for single ones and for a part of one."""
    boxes = random_boxes(40, 224, 160)
    for channels in (70, 3, 130):
        features = pyramid(channels, dtype, memory_format)
        options = ([0.25, 0.125], 5, 4, 0, True, mode, 56.0, 4)
        pooled, codes = OP.roi_max_pool(features, boxes, *options)
        assert codes.dtype == torch.uint8 and codes.shape == pooled.shape
        assert codes.is_contiguous(memory_format=memory_format)
        assert torch.equal(pooled, OP.roi_align(features, boxes, *options))
        grad = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        found = OP.roi_max_pool_backward(grad, codes, features, boxes, *options)
        expected, _ = OP.roi_align_backward(grad, features, boxes, *options, False)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs) and ours.any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mode", MAX_MODES)
def test_winners_of_bins_with_more_samples_than_a_byte_can_number(mode, memory_format):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 260, 300, generator=generator).contiguous(memory_format=memory_format)
    boxes = torch.tensor([[0, 1.0, 2, 290, 255], [0, 5, 5, 40, 20], [0, 8, 3, 23, 19]])
    options = ([1.0], 1, 1, 0, False, mode, 224.0, 4)
    pooled, codes = OP.roi_max_pool([x], boxes, *options)
    grad = torch.randn(pooled.shape, generator=generator)
    (found,) = OP.roi_max_pool_backward(grad, codes, [x], boxes, *options)
    expected, (expected_grad,) = roi_align_reference(
        [x.numpy()], boxes.numpy(), [1.0], (1, 1), 0, False, mode, grad.numpy()
    )
    np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(found.numpy(), expected_grad, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("bins", [(1, 1), (2, 3), (7, 7), (17, 14)])
def test_pool_has_torchvisions_gradient_to_the_bit(memory_format, bins):
    """With ties, cells that are not finite, boxes across the border and bins of no cell, one, few and many. Gradients
    are whole numbers, whose sums do not depend on the order."""
    generator = torch.Generator().manual_seed(3)
    boxes = random_boxes(60, 224, 160, seed=1)
    boxes[0, 1:] = torch.tensor([10.0, 10, -40, -50])
    boxes[1, 1:] = torch.tensor([-80.0, -90, -60, -70])
    for channels in (3, 70, 144):
        x = torch.randint(-3, 4, (2, channels, 41, 57), generator=generator).float()
        x[torch.rand(x.shape, generator=generator) < 0.05] = torch.nan
        x[:, :, :5, :6] = -torch.inf
        ours, theirs = (
            x.clone().contiguous(memory_format=layout).requires_grad_()
            for layout in (memory_format, FORMATS[0])
        )
        pooled = roi_align(ours, boxes, bins, 0.25, mode="pool")
        expected = torchvision.ops.roi_pool(theirs, boxes, bins, 0.25)
        assert torch.equal(pooled, expected)
        grad = torch.randint(-8, 9, pooled.shape, generator=generator).float()
        (found,) = torch.autograd.grad(pooled, ours, grad)
        (wanted,) = torch.autograd.grad(expected, theirs, grad)
        assert torch.equal(found, wanted) and found.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["avg", "pool"])
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_cells_beside_the_boxes_have_no_gradient(memory_format, mode, dtype):
    """Not what the memory of sums held before, either."""
    x = torch.ones(1, 70, 40, 30, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    everywhere, below = torch.tensor([[0, 0.0, 0, 29, 39]]), torch.tensor([[0, 5.0, 20, 25, 30]])
    for boxes in (everywhere, below):
        pooled = roi_align(x, boxes, 20, 1.0, mode=mode)
        (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert grad[:, :, 20:30, 5:25].any()
    assert not grad[:, :, :19].any() and not grad[:, :, 33:].any()


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_any_number_of_threads_gives_the_same_bits(memory_format):
    features = pyramid(130, torch.float32, memory_format)
    options = ([0.25, 0.125], 5, 4, 0, True, "pool", 56.0, 4)
    boxes = random_boxes(40, 224, 160)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            pooled, codes = OP.roi_max_pool(features, boxes, *options)
            results.append(
                [pooled, codes, *OP.roi_max_pool_backward(pooled, codes, features, boxes, *options)]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


DIGEST = """
import hashlib, itertools, torch
from guarded_memory import guarded
import mrcnn_ext.ops
OP = torch.ops.mrcnn_ext
generator = torch.Generator().manual_seed(0)
boxes = torch.cat([torch.zeros(30, 1), torch.rand(30, 2, generator=generator) * 60 - 5], dim=1)
boxes = guarded(torch.cat([boxes, boxes[:, 1:] + torch.rand(30, 2, generator=generator) * 60], dim=1))
digest = hashlib.sha256()
formats, dtypes = (torch.contiguous_format, torch.channels_last), (torch.float32, torch.float64, torch.bfloat16)
for mode, layout, dtype, bins in itertools.product(("max", "pool"), formats, dtypes, ((3, 5), (1, 1))):
    x = torch.randint(-9, 10, (1, 75, 40, 50), generator=generator).to(dtype).contiguous(memory_format=layout)
    x, options = guarded(x), ([1.0], *bins, 2, False, mode, 224.0, 4)
    pooled, codes = OP.roi_max_pool([x], boxes, *options)
    grad = torch.randint(-9, 10, pooled.shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    (found,) = OP.roi_max_pool_backward(guarded(grad), guarded(codes), [x], boxes, *options)
    for result in (pooled, codes, found):
        digest.update(result.float().contiguous().numpy().tobytes())
print(digest.hexdigest(), torch.backends.cpu.get_cpu_capability())
"""


def test_every_instruction_set_gives_the_same_bits_and_reads_within_its_arguments():
    found = {}
    for capability in ("default", "avx2", "avx512"):
        run = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={
                **os.environ,
                "ATEN_CPU_CAPABILITY": capability,
                "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parents[2]))),
            },
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        digest, used = run.stdout.split()[:2]
        found[used] = digest
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mode", MAX_MODES)
@pytest.mark.parametrize("boxes", [2, 40])
def test_many_boxes_and_few_are_pooled_alike(mode, memory_format, boxes):
    """In NCHW many are pooled from a copy of the map, few from copies of their cells."""
    (x,) = (level for level in pyramid(19, torch.float32, memory_format)[:1])
    rois = random_boxes(boxes, 224, 160)
    pooled = roi_align(x, rois, (3, 4), 0.25, mode=mode)
    for i in range(boxes):
        assert torch.equal(pooled[i], roi_align(x, rois[i : i + 1], (3, 4), 0.25, mode=mode)[0])


@pytest.mark.parametrize("mode", MAX_MODES)
def test_gradients_take_the_operator_that_keeps_places(mode, monkeypatch):
    features = pyramid(4, torch.float32, torch.contiguous_format, requires_grad=True)
    pooled = roi_align_pyramid(features, random_boxes(6, 224, 160), 3, [0.25, 0.125], mode=mode)
    assert "roi_max_pool" in type(pooled.grad_fn).__name__
    with torch.no_grad():
        assert roi_align_pyramid(features, random_boxes(6, 224, 160), 3, [0.25, 0.125], mode=mode).equal(
            pooled
        )


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_a_gradient_that_is_not_there_is_passed_on():
    x = torch.randn(1, 3, 9, 9, requires_grad=True)
    pooled = roi_align(x, torch.tensor([[0, 0.0, 0, 5, 5]]), 2, 1.0, mode="pool")
    assert torch.autograd.grad(_NoGradient.apply(pooled).sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("mode", MAX_MODES)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_opcheck(mode, memory_format):
    boxes = random_boxes(5, 224, 160)
    options = ([0.25, 0.125], 3, 2, 0, True, mode, 56.0, 4)
    features = pyramid(3, torch.float32, memory_format, requires_grad=True)
    torch.library.opcheck(OP.roi_max_pool, (features, boxes, *options))
    features = [x.detach() for x in features]
    pooled, codes = OP.roi_max_pool(features, boxes, *options)
    torch.library.opcheck(
        OP.roi_max_pool_backward, (torch.randn_like(pooled), codes, features, boxes, *options)
    )


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("mode", MAX_MODES)
def test_the_first_of_equal_maxima_takes_the_gradient_and_nan_none(mode, memory_format):
    x = torch.ones(1, 20, 8, 8).contiguous(memory_format=memory_format)
    x[0, :, 2, 2] = torch.nan
    x.requires_grad_()
    roi_align(x, torch.tensor([[0, 0.0, 0, 7, 7]]), 1, 1.0, 1, mode=mode).sum().backward()
    place = torch.zeros(8, 8)
    if mode == "pool":
        place[0, 0] = 1
    else:
        place[3, 3] = 1 if mode == "max" else 0
    if mode == "warp_max":
        place[4, 4] = 1
    if mode == "max":
        place = torch.zeros(8, 8)
        place[3:5, 3:5] = 0.25
    torch.testing.assert_close(x.grad, place.expand(1, 20, 8, 8))


def test_errors_name_the_argument():
    features, boxes = pyramid(3, torch.float32, torch.contiguous_format)[:1], random_boxes(4, 224, 160)
    options = ([0.25], 3, 2, 0, True)
    pooled, codes = OP.roi_max_pool(features, boxes, *options, "pool", 56.0, 4)
    for call, error, message in (
        (
            lambda: OP.roi_max_pool(features, boxes, *options, "avg", 56.0, 4),
            ValueError,
            "mode must be one of 'max', 'warp_max' and 'pool', got 'avg'",
        ),
        (
            lambda: OP.roi_max_pool_backward(pooled, codes[:2], features, boxes, *options, "pool", 56.0, 4),
            ValueError,
            r"codes must have the shape and the device of grad, \[4, 3, 3, 2\], got \[2, 3, 3, 2\]",
        ),
        (
            lambda: OP.roi_max_pool_backward(pooled, pooled, features, boxes, *options, "pool", 56.0, 4),
            TypeError,
            "codes must be uint8, got Float",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
