"""The CUDA kernels of RoI pooling on the emulated device, against the CPU operator; and the emulation against itself.

Every call of an emulated operator runs in three orders of threads, with memory and shared memory filled with garbage,
and fails if the results differ by a bit.
"""

import os

import pytest
import torch

from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.roi_align import MODES

# More of them, e.g. after a change of the kernels: MRCNN_EXT_FUZZ_CASES=1000.
CASES = int(os.environ.get("MRCNN_EXT_FUZZ_CASES", 10))
MAX_MODES = ("max", "warp_max", "pool")
# Of the largest value, or of 1 if that is less. Half types are rounded once, from sums in another order.
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def operators(build):
    return getattr(torch.ops.mrcnn_ext, f"roi_align_{build}"), getattr(
        torch.ops.mrcnn_ext, f"roi_align_{build}_backward"
    )


class Random:
    """Draws of one seed."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low, high):
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def choice(self, values):
        return values[self.integer(0, len(values) - 1)]

    def number(self, low, high):
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def tensor_in_some_layout(self, x):
        layout = self.choice(
            ["contiguous", "channels_last", "sliced", "channels_last sliced", "transposed", "every other"]
        )
        if layout == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        if "sliced" in layout:
            padded = torch.nn.functional.pad(x, (1, 2, 0, 1, 1, 3))
            if layout == "channels_last sliced":
                padded = padded.contiguous(memory_format=torch.channels_last)
            return padded[:, 1:-3, : x.shape[2], 1 : 1 + x.shape[3]]
        if layout == "transposed":
            return x.transpose(2, 3).contiguous().transpose(2, 3)
        if layout == "every other":
            return x.repeat_interleave(2, dim=3)[..., ::2]
        return x.contiguous()

    def box(self, extent):
        """A box of an image of extent x extent: an ordinary one, or one that is likely to be got wrong."""
        kind = self.choice(
            ["plain"] * 6 + ["integer", "empty", "thin", "inverted", "outside", "border", "huge", "bad"]
        )
        x, y, w, h = (self.number(-0.2, 1) * extent for _ in range(4))
        w, h = abs(w), abs(h)
        if kind == "integer":
            x, y, w, h = map(round, (x, y, w, h))
        elif kind == "empty":
            w = h = 0.0
        elif kind == "thin":
            w = 1e-6
        elif kind == "inverted":
            w = -w
        elif kind == "outside":
            x += 3 * extent
        elif kind == "border":
            x, y = extent - w, -1.0
        elif kind == "huge":
            x, y = -(10 ** self.number(1, 12)), self.choice([y, -(10 ** self.number(1, 12))])
            w, h = 10 ** self.number(1, 12), self.choice([h, 10 ** self.number(1, 12)])
        elif kind == "bad":
            x = self.choice([float("nan"), float("inf"), -float("inf")])
        return [x, y, x + w, y + h]


def random_case(seed, mode):
    """A gradient and the arguments of roi_align, of the kinds that take different paths in the kernels."""
    r = Random(seed)
    dtype = r.choice(list(TOLERANCES))
    images, channels = r.integer(1, 3), r.choice([1, 3, 8, 31, 33, 64, 65, 130, 132])
    height, width = r.integer(1, 40), r.integer(1, 40)
    levels = r.choice([1, 1, 2, 4])
    features = []
    for k in range(levels):
        x = r.normal(images, channels, -(-height // 2**k), -(-width // 2**k))
        if r.integer(0, 1):
            x = (2 * x).round() / 2  # several maxima in a bin
        features.append(r.tensor_in_some_layout(x.to(dtype)))
    finest = r.choice([1.0, 0.5, 0.25] if levels > 1 else [1.0, 0.5, 0.3])
    extent = max(height, width) / finest
    boxes = [[r.integer(0, images - 1), *r.box(extent)] for _ in range(r.integer(0, 9))]
    rois = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 5)
    size = r.choice([(1, 1), (2, 3), (7, 7), (5, 2), (14, 14), (3, 35), (40, 1)])
    grad = r.tensor_in_some_layout(r.normal(len(rois), channels, *size).to(dtype)) if len(rois) else None
    if grad is None:
        grad = torch.zeros(0, channels, *size, dtype=dtype)
    return grad, (
        features,
        rois.to(torch.float64 if dtype == torch.float64 else torch.float32),
        [finest / 2**k for k in range(levels)],
        *size,
        r.choice([-1, 0, 0, 1, 2, 5]),
        bool(r.integer(0, 1)),
        mode,
        r.choice([224.0, 16.0]),
        r.choice([4, 2, 0]),
    )


def assert_near(actual, expected, scale=1):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if actual.numel() == 0:
        return
    actual, tolerance = actual.double(), scale * TOLERANCES[actual.dtype]
    expected = expected.double()
    assert torch.equal(actual.isfinite(), expected.isfinite())
    largest = max(1.0, float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 1.0)
    assert float((actual - expected).nan_to_num().abs().max()) <= tolerance * largest


@pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_the_cpu_operator(emulated, mode):
    forward, backward = operators(emulated)
    for seed in range(CASES):
        grad, arguments = random_case(seed, mode)
        output, expected = forward(*arguments), torch.ops.mrcnn_ext.roi_align(*arguments)
        if mode in MAX_MODES:
            assert torch.equal(output, expected), f"seed {seed}"
        else:
            assert_near(output, expected)
        found = backward(grad, *arguments, mode == "exact")
        wanted = torch.ops.mrcnn_ext.roi_align_backward(grad, *arguments, mode == "exact")
        for ours, theirs in zip(found[0], wanted[0], strict=True):
            assert_near(ours, theirs, scale=8)
            assert ours.stride() == theirs.stride()
        if mode == "exact":
            # Bins far thinner than a cell divide by their width; the sums over the output cancel.
            torch.testing.assert_close(found[1], wanted[1], rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_more_rois_than_a_tile_looks_at_together(emulated, mode, memory_format):
    forward, backward = operators(emulated)
    r = Random(0)
    features = [
        r.normal(2, 3, size, size).float().contiguous(memory_format=memory_format) for size in (24, 12)
    ]
    count = 1300  # most of them of the first image; 4 of each of 128 threads are looked at together
    rois = torch.tensor([[r.integer(0, 4) // 4, *r.box(24)] for _ in range(count)])
    arguments = (features, rois, [1.0, 0.5], 3, 2, 0, True, mode, 12.0, 1)
    assert_near(forward(*arguments), torch.ops.mrcnn_ext.roi_align(*arguments))
    grad = r.normal(count, 3, 3, 2).float()
    found, _ = backward(grad, *arguments, False)
    wanted, _ = torch.ops.mrcnn_ext.roi_align_backward(grad, *arguments, False)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_near(ours, theirs, scale=8)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [-1, 2, 1e9, float("nan"), float("inf")])
def test_batch_index_out_of_range_pools_to_zeros_without_a_gradient(emulated, mode, index):
    forward, backward = operators(emulated)
    rois = torch.tensor([[0, 1, 1, 3, 3], [index, 1, 1, 3, 3]], dtype=torch.float32)
    options = ([1.0], 2, 2, 0, False, mode, 224.0, 4)
    features = [torch.rand(2, 4, 8, 8)]
    output = forward(features, rois, *options)
    assert output[1].abs().max() == 0 and output[0].abs().max() > 0
    both = backward(torch.ones_like(output), features, rois, *options, False)
    alone = backward(torch.ones_like(output[:1]), features, rois[:1], *options, False)
    assert torch.equal(both[0][0], alone[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_a_gradient_that_is_not_finite_stays_in_the_cells_of_its_bin(emulated, mode):
    _, backward = operators(emulated)
    rois = torch.tensor([[0, 0, 0, 8, 8]], dtype=torch.float32)
    grad = torch.ones(1, 2, 2, 2)
    grad[0, 0, 0, 0] = float("nan")
    ((found,), _) = backward(
        grad, [torch.rand(1, 2, 16, 16)], rois, [1.0], 2, 2, 2, False, mode, 224.0, 4, False
    )
    assert not found[0, 0, :5, :5].isfinite().all()
    assert (
        found[0, 0, 6:].isfinite().all()
        and found[0, 0, :, 6:].isfinite().all()
        and found[0, 1].isfinite().all()
    )


def test_rois_are_located_once_and_read_once_per_tile(emulated):
    """The work of a backward grows with the RoIs, not with RoIs times tiles times groups of channels."""
    _, backward = operators(emulated)
    take_counts = getattr(torch.ops.mrcnn_ext, f"take_counts_{emulated}")
    options = ([0.25], 7, 7, 0, True, "avg", 224.0, 4)
    located = []
    for images in (1, 3):
        rois = torch.cat([torch.tensor([[i, 20.0, 20, 60, 60]]).repeat(6, 1) for i in range(images)])
        take_counts()
        backward(torch.ones(len(rois), 160, 7, 7), [torch.zeros(images, 160, 40, 40)], rois, *options, False)
        locate, _, _, _, visits = take_counts()
        assert locate == len(rois)
        # 4.5 to 14.5 cells: tiles 0 and 1 of either axis; warps of 32 channels.
        assert visits == len(rois) * 4 * 5
        located.append(locate)
    assert located == [6, 18]


@pytest.mark.parametrize(
    "features, size, sampling_ratio, mode, message",
    [
        ([(1, 1, 2**k, 1) for k in range(9, 0, -1)], (1, 1), 0, "avg", "at most 8 levels on CUDA, got 9"),
        (
            [(1, 1, 4, 4)],
            (2**13, 2**12),
            0,
            "avg",
            r"pooled_height \* pooled_width must be at most 2\^24 on CUDA",
        ),
        (
            [(1, 1, 4, 4)],
            (1, 1),
            2**15 + 1,
            "max",
            r"sampling_ratio must be at most 2\^15 in the max modes on CUDA",
        ),
        ([(1, 1, 2**16, 2**16)], (1, 1), 0, "max", r"features\[0\] is too large for the max modes on CUDA"),
        ([(1, 32 * 65536, 1, 1)], (1, 1), 0, "avg", "at most 2097120 channels on CUDA, got 2097152"),
    ],
    ids=["levels", "bins", "samples", "map", "channels"],
)
def test_limits_are_named(emulated, features, size, sampling_ratio, mode, message):
    forward, _ = operators(emulated)
    zero = torch.zeros(1)
    features = [zero.expand(shape) for shape in features]
    if features[0].shape[1] > 1:
        features = [f.contiguous(memory_format=torch.channels_last) for f in features]
    scales = [2.0**-k for k in range(len(features))]
    with pytest.raises(ValueError, match=message):
        forward(features, torch.zeros(1, 5), scales, *size, sampling_ratio, True, mode, 224.0, 4)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("missing barrier", "depends on the order of the threads"),
        ("missing barrier after reading", "depends on the order of the threads"),
        ("missing barrier of a warp", "depends on the order of the threads"),
        ("missing initialisation", "depends on the order of the threads"),
        (
            "barrier in a branch",
            "threads do not meet: thread 0 waits at .*operators.cpp:[0-9]+; thread 1 has ended;",
        ),
        ("write past the end", "a write outside of shared memory"),
    ],
)
def test_the_emulation_finds_faults(emulated, fault, message):
    run = getattr(torch.ops.mrcnn_ext, f"run_faulty_{emulated}")
    assert torch.equal(run(""), torch.arange(63, -1, -1, dtype=torch.int32))
    if fault == "write past the end" and "sanitize=address" in os.environ.get("CXXFLAGS", ""):
        pytest.skip("the sanitizer ends the process at this one")
    with pytest.raises(RuntimeError, match=message):
        run(fault)
    assert torch.equal(run(""), torch.arange(63, -1, -1, dtype=torch.int32))  # it goes on after an error
