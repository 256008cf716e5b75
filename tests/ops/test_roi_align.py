"""What RoI pooling computes, against the definitions and against torchvision and detectron2."""

import math
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roi_align_reference import roi_align_reference, round_half_away

from mrcnn_ext.layers import roi_align_pyramid
from mrcnn_ext.ops import _extension, roi_align, roi_align_eager
from mrcnn_ext.ops.roi_align import MODES
from mrcnn_ext.ops.roi_options import RoIOptions

# Relative and absolute. Half-precision outputs are rounded once; sums run in float32.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 2e-5),
    torch.bfloat16: (2**-7, 1e-4),
    torch.float16: (2**-10, 1e-4),
}


def assert_near(actual, expected, dtype, scale=1.0):
    rtol, atol = TOLERANCES[dtype]
    expected = torch.as_tensor(np.asarray(expected))
    torch.testing.assert_close(actual.double().cpu(), expected.double(), rtol=rtol, atol=atol * scale)


def in_layout(x, layout):
    """The same values: contiguous, channels_last, or strided."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        padded = torch.nn.functional.pad(x, (1, 2, 0, 1, 1, 0))
        return padded[:, 1:, : x.shape[2], 1 : 1 + x.shape[3]]
    if layout == "strided_rows":
        return x.repeat_interleave(2, dim=2)[:, :, ::2]
    return x.contiguous()


coordinate = st.one_of(
    st.integers(-10, 50).map(float),
    st.floats(-10, 50, width=32),
    st.floats(-300, 300, width=32),
)
size = st.floats(0, 60, width=32)
box = st.one_of(
    st.tuples(coordinate, coordinate, size, size).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])),
    st.tuples(coordinate, coordinate, coordinate, coordinate),  # inverted ones too
    st.tuples(coordinate, coordinate).map(lambda b: (*b, *b)),  # no extent
)


@st.composite
def problems(draw):
    """Arguments of roi_align_pyramid on the CPU, and a gradient."""
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    batch, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 5, 8, 17, 33, 70]))
    height, width = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    levels = draw(st.integers(1, 3))
    layout = draw(st.sampled_from(["contiguous", "channels_last", "sliced", "strided_rows"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    features = [
        torch.randn(batch, channels, -(-height // 2**k), -(-width // 2**k), generator=generator).to(dtype)
        for k in range(levels)
    ]
    finest = draw(st.sampled_from([1.0, 0.5, 0.25, 0.0625] if levels > 1 else [1.0, 0.5, 0.25, 0.3, 0.0625]))
    boxes = draw(st.lists(box, max_size=4))
    index = draw(st.lists(st.integers(0, batch - 1), min_size=len(boxes), max_size=len(boxes)))
    rois = torch.tensor([(i, *b) for i, b in zip(index, boxes, strict=True)]).reshape(-1, 5)
    output_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    return {
        "features": [in_layout(f, layout) for f in features],
        "boxes": rois.to(torch.float64 if dtype == torch.float64 else torch.float32),
        "output_size": output_size,
        "spatial_scales": [finest / 2**k for k in range(levels)],
        "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3, 5])),
        "aligned": draw(st.booleans()),
        "mode": draw(st.sampled_from(MODES)),
        "canonical_box_size": draw(st.sampled_from([224, 16])),
        "canonical_level": draw(st.sampled_from([4, 2, 0])),
    }, torch.randn(len(boxes), channels, *output_size, generator=generator).to(dtype)


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
@given(problem=problems())
def test_matches_the_definition(any_backend, device, problem):
    arguments, grad = problem
    features = [f.detach().to(device).requires_grad_() for f in arguments["features"]]
    out = roi_align_pyramid(**{**arguments, "features": features, "boxes": arguments["boxes"].to(device)})
    grads = torch.autograd.grad(out, features, grad.to(device))

    dtype = features[0].dtype
    real = np.float64 if dtype == torch.float64 else np.float32
    expected, expected_grads = roi_align_reference(
        [f.to(torch.promote_types(dtype, torch.float32)).numpy().astype(real) for f in arguments["features"]],
        arguments["boxes"].numpy(),
        arguments["spatial_scales"],
        arguments["output_size"],
        arguments["sampling_ratio"],
        arguments["aligned"],
        arguments["mode"],
        grad.double().numpy(),
        (arguments["canonical_box_size"], arguments["canonical_level"]),
    )
    assert out.dtype == dtype
    assert_near(out, expected, dtype)
    for actual, wanted in zip(grads, expected_grads, strict=True):
        assert actual.dtype == dtype
        assert_near(actual, wanted, dtype, scale=10)


def random_features(
    levels=1, channels=6, dtype=torch.float32, device="cpu", layout="contiguous", size=(40, 56)
):
    generator = torch.Generator().manual_seed(0)
    features = [
        torch.randn(2, channels, size[0] // 2**k, size[1] // 2**k, generator=generator) for k in range(levels)
    ]
    return [in_layout(f.to(device=device, dtype=dtype), layout) for f in features]


def random_boxes(count, device="cpu", dtype=torch.float32, extent=240.0):
    """Boxes inside, across and outside an image of 224 x 160 pixels."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * extent - 20
    size = torch.rand(count, 2, generator=generator) ** 2 * extent
    image = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([image, corner, corner + size], dim=1).to(device=device, dtype=dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_avg_is_torchvisions_roi_align(any_backend, device, layout, aligned, sampling_ratio):
    # As wide as the finest level of a real pyramid: kernels take long rows in pieces.
    (x,) = random_features(channels=19, device=device, layout=layout, size=(200, 304))
    boxes = torch.cat([random_boxes(40, device, extent=e) for e in (30, 240, 1200)])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    options = ((7, 5), 0.25, sampling_ratio, aligned)
    actual, expected = roi_align(ours, boxes, *options), torchvision.ops.roi_align(theirs, boxes, *options)
    # nvcc fuses torchvision's products into its sums: from 256 cells on, where a unit in the last place is 2^-15,
    # its samples and ours may lie that far apart (both up to 2.6e-5 from the exact place), which moves a mean of values
    # that differ by several units from cell to cell by as much.
    scale = 5 if device.type == "cuda" else 1
    assert_near(actual.detach(), expected.detach().cpu(), torch.float32, scale)
    grad = torch.rand_like(expected)
    actual.backward(grad)
    expected.backward(grad)
    assert_near(ours.grad, theirs.grad.cpu(), torch.float32, scale=10)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pool_is_torchvisions_roi_pool_to_the_bit(any_backend, device, layout):
    (x,) = random_features(channels=19, device=device, layout=layout)
    boxes = random_boxes(50, device)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    actual = roi_align(ours, boxes, (7, 5), 0.25, mode="pool")
    expected = torchvision.ops.roi_pool(theirs, boxes, (7, 5), 0.25)
    assert torch.equal(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert torch.equal(ours.grad, theirs.grad)


def test_boxes_may_be_a_list_per_image(backend, device):
    (x,) = random_features(device=device)
    boxes = random_boxes(7, device)
    as_list = [boxes[boxes[:, 0] == i, 1:] for i in range(2)]
    as_rows = torch.cat([boxes[boxes[:, 0] == i] for i in range(2)])
    assert torch.equal(roi_align(x, as_list, 3, 0.25), roi_align(x, as_rows, 3, 0.25))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_boxes_that_are_not_finite_pool_to_zero_and_leave_the_others_alone(any_backend, device, mode, bad):
    features = [f.requires_grad_() for f in random_features(levels=2, device=device)]
    boxes = random_boxes(8, device)
    spoiled = boxes.clone()
    for row, column in enumerate([1, 2, 3, 4]):
        spoiled[2 * row, column] = bad
    options = ((3, 2), [0.25, 0.125], 2, True, mode, 56, 3)
    actual, expected = (roi_align_pyramid(features, b, *options) for b in (spoiled, boxes))
    assert actual[::2].abs().max() == 0
    assert torch.equal(actual[1::2], expected[1::2])
    actual_grads = torch.autograd.grad(actual.sum(), features)
    alone = roi_align_pyramid(features, boxes[1::2], *options)
    for actual_grad, grad in zip(actual_grads, torch.autograd.grad(alone.sum(), features), strict=True):
        torch.testing.assert_close(actual_grad, grad)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aligned", [False, True])
def test_boxes_far_larger_than_the_map(any_backend, device, mode, aligned):
    x = random_features(device=device, dtype=torch.float64, size=(6, 5))[0].requires_grad_()
    boxes = torch.tensor(
        [[0, -300.0, -7000, 1e4, 2e4], [1, 2, 1, 3e4, 5.5], [0, -1e4, -1e4, 1, 1]], device=device
    )
    out = roi_align(x, boxes, (2, 3), 0.25, -1, aligned, mode)
    grad = torch.rand_like(out)
    (x_grad,) = torch.autograd.grad(out, x, grad)
    expected, (expected_grad,) = roi_align_reference(
        [x.detach().cpu().numpy()], boxes.cpu().numpy(), [0.25], (2, 3), -1, aligned, mode, grad.cpu().numpy()
    )
    assert_near(out.detach(), expected, torch.float64)
    assert_near(x_grad, expected_grad, torch.float64)


@pytest.mark.parametrize(
    "corners, output_size, mode",
    [
        ([0, -141739504, 7, 6.8705554], (22, 1), "max"),
        ([0, -62241052, 7, 1.2973471], (5, 1), "avg"),
        ([0.19, -2.4e8, 2.9e8, -2.1], (2, 3), "warp_max"),
    ],
)
def test_gradient_of_boxes_whose_edges_are_rounded_by_cells(kernels, device, corners, output_size, mode):
    """Beyond 2^24 cells the far edge of a box, in float32, is not where its last sample is."""
    x = torch.arange(1.0, 65, device=device).reshape(1, 1, 8, 8).requires_grad_()
    out = roi_align(x, torch.tensor([[0, *corners]], device=device), output_size, 1.0, 0, False, mode)
    (x_grad,) = torch.autograd.grad(out.sum(), x)
    assert out.sum() > 0
    torch.testing.assert_close((x_grad * x).sum(), out.sum(), rtol=1e-4, atol=0)  # pooling is linear


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_boxes_of_any_finite_size_end(any_backend, device, mode, sampling_ratio):
    x = random_features(device=device, size=(6, 5))[0].requires_grad_()
    top = torch.finfo(torch.float32).max
    boxes = torch.tensor([[0, -s, -s, s, s] for s in (1e6, 1e8, 1e9, 1e12, 1e30, top)], device=device)
    boxes = torch.cat(
        [boxes, boxes * torch.tensor([1, 0, 1, 1, 1], device=device), boxes[:, [0, 3, 4, 1, 2]]]
    )
    out = roi_align(x, boxes, 2, 0.25, sampling_ratio, True, mode)
    (x_grad,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all() and x_grad.isfinite().all()


def test_boxes_keep_their_precision_under_half_features(any_backend, device):
    ramp = torch.arange(128.0, device=device).expand(1, 3, 4, 128)
    boxes = torch.tensor([[0, 301.3, 4.0, 305.3, 8.0]], device=device)
    for dtype in (torch.bfloat16, torch.float16):
        out = roi_align(ramp.to(dtype), boxes, 1, 0.25, 2, True)
        # The centre lies at 303.3 / 4 - 0.5; with boxes in bfloat16 it would be at 304 / 4 - 0.5.
        assert_near(out, torch.full((1, 3, 1, 1), 303.3 / 4 - 0.5).to(dtype).double().numpy(), torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shape, rows",
    [((2, 3, 8, 8), 0), ((0, 3, 8, 8), 0), ((2, 0, 8, 8), 3), ((2, 3, 0, 8), 3), ((2, 3, 8, 0), 3)],
)
def test_empty_inputs(any_backend, device, mode, shape, rows):
    x = torch.randn(shape, device=device, requires_grad=True)
    out = roi_align(x, random_boxes(rows, device), (3, 2), mode=mode)
    assert out.shape == (rows, shape[1], 3, 2)
    out.sum().backward()
    assert x.grad.shape == shape
    assert out.abs().sum() == 0 and x.grad.abs().sum() == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_output_and_gradients_keep_dtype_and_memory_format(any_backend, device, mode, layout, dtype):
    features = [f.requires_grad_() for f in random_features(2, 6, dtype, device, layout)]
    out = roi_align_pyramid(features, random_boxes(9, device), (3, 2), [0.25, 0.125], mode=mode)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert out.dtype == dtype and out.is_contiguous(memory_format=memory_format)
    for grad in torch.autograd.grad(out.sum(), features):
        assert grad.dtype == dtype and grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_from_any_number_of_threads_and_from_run_to_run(backend, device, mode, layout, dtype):
    if device.type == "cuda" and backend != "compiled":
        pytest.skip("torchvision's backward on CUDA adds gradients up in any order")
    features = [f.requires_grad_() for f in random_features(2, 72, dtype, device, layout)]
    boxes = random_boxes(12, device)

    def run(threads):
        torch.set_num_threads(threads)
        out = roi_align_pyramid(features, boxes, (5, 4), [0.25, 0.125], 2, True, mode, 56)
        return [out, *torch.autograd.grad(out, features, out.detach())]

    before = torch.get_num_threads()
    try:
        first, *others = run(1), run(2), run(2)
    finally:
        torch.set_num_threads(before)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def small_problem(mode, device="cpu"):
    """Two levels and the corners of three boxes, and the pooling of them."""
    generator = torch.Generator().manual_seed(3)
    features = [
        torch.rand(2, 2, s, s + 1, dtype=torch.float64, generator=generator).to(device).requires_grad_()
        for s in (8, 4)
    ]
    corners = torch.tensor(
        [[1.3, 0.7, 5.9, 6.2], [2.1, -1.4, 9.3, 7.7], [-3.6, 2.2, 2.9, 14.1]],
        dtype=torch.float64,
        device=device,
    )

    def pool(a, b, corners=corners, aligned=True):
        boxes = torch.cat([corners.new_tensor([[0], [1], [1]]), corners], dim=1)
        return roi_align_pyramid([a, b], boxes, (3, 2), [1.0, 0.5], 2, aligned, mode, 4, 0)

    return pool, features, corners.requires_grad_(mode == "exact")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("aligned", [False, True])
def test_gradients(backend, device, mode, aligned):
    pool, features, corners = small_problem(mode, device)
    assert torch.autograd.gradcheck(lambda a, b, c: pool(a, b, c, aligned), (*features, corners))


@pytest.mark.parametrize("mode", ["avg", "warp_avg", "exact"])
def test_double_backward_of_average_modes(backend, device, mode):
    pool, features, corners = small_problem(mode, device)
    corners.requires_grad_(False)
    assert torch.autograd.gradgradcheck(pool, tuple(features))


@pytest.mark.parametrize("mode", ["max", "warp_max", "pool", "exact"])
def test_double_backward_that_is_missing_says_so(backend, device, mode):
    pool, features, _ = small_problem(mode, device)
    (x_grad, _) = torch.autograd.grad(pool(*features).square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match=f'double backward of mode "{mode}"'):
        x_grad.sum().backward()


def test_exact_has_the_same_box_gradients_in_float32(any_backend, device):
    (x,) = random_features(channels=19, device=device)
    boxes = random_boxes(20, device)
    boxes[3, 3:] = boxes[3, 1:3]  # no extent: no gradient
    grads = []
    for dtype in (torch.float32, torch.float64):
        b = boxes.to(dtype, copy=True).requires_grad_()
        roi_align(x.to(dtype), b, (4, 3), 0.25, aligned=True, mode="exact").square().sum().backward()
        assert b.grad.dtype == dtype and b.grad[3].abs().sum() == 0 and b.grad[:, 0].abs().sum() == 0
        grads.append(b.grad.double())
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_tiny_boxes_far_from_the_origin(any_backend, device, mode):
    """Pooling a constant gives that constant, however small a bin is beside the coordinates' precision."""
    x = torch.ones(1, 3, 64, 128, device=device)
    boxes = torch.tensor(
        [[0, 300.03, 200.0, 300.031, 200.002], [0, 400, 120.1, 400.0001, 180]], device=device
    )
    out = roi_align(x, boxes, 7, 0.25, 2, True, mode)
    torch.testing.assert_close(out, torch.ones_like(out))


@pytest.mark.parametrize("mode", ["avg", "pool", "exact"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("bins", [7, 14])
def test_many_boxes_over_a_pyramid(any_backend, device, mode, layout, bins):
    """As a detector pools: every kind of box at once, bins wider and narrower than cells."""
    features = [
        f.requires_grad_() for f in random_features(4, 16, device=device, layout=layout, size=(48, 64))
    ]
    boxes = torch.cat([random_boxes(30, device, extent=e) for e in (8, 40, 240, 900)])
    options = (bins, [1 / 4, 1 / 8, 1 / 16, 1 / 32], 0, True, mode)
    results = []
    for name in (any_backend, "torchvision" if any_backend == "eager" else "eager"):
        with _extension.use_backend(name):
            out = roi_align_pyramid(features, boxes, *options)
            results.append([out.detach(), *torch.autograd.grad(out, features, torch.ones_like(out))])
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected.cpu(), torch.float32, scale=20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_box_among_many_is_the_box_alone(dtype):
    # Many boxes on one map make the compiled operator pool from a copy of the map in another layout.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 70, 33, 45, generator=generator).to(dtype)
    corners = torch.rand(120, 2, generator=generator) * 100
    boxes = torch.cat([torch.arange(120.0)[:, None] % 2, corners, corners + 20 + corners.flip(1)], 1)
    together = roi_align(x, boxes, (3, 5), 0.25, aligned=True)
    alone = torch.cat([roi_align(x, box[None], (3, 5), 0.25, aligned=True) for box in boxes])
    assert together.is_contiguous() and alone.is_contiguous()
    torch.testing.assert_close(together, alone, rtol=1e-5 if dtype != torch.bfloat16 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_exact_has_box_gradients_that_half_precision_cannot_hold(backend, device, layout, dtype):
    generator = torch.Generator().manual_seed(0)
    features = (torch.rand(1, 4, 18, 7, generator=generator) - 0.5) * 1.2e5
    features = in_layout(features, layout).to(device, dtype)
    boxes = torch.tensor([[0, 2.5, 3.2, 6.1, 12.9]], device=device)

    def box_gradient(features):
        b = boxes.clone().requires_grad_(True)
        pooled = roi_align(features, b, (2, 5), aligned=True, mode="exact")
        weights = torch.linspace(-1, 1, pooled.numel(), device=device).view(pooled.shape)
        (pooled.float() * weights.to(dtype).float()).sum().backward()
        return b.grad[0, 1:]

    expected = box_gradient(features.float())
    assert expected.abs().max() > 3e4  # times a cell, beyond float16
    torch.testing.assert_close(
        box_gradient(features), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["avg", "max", "pool", "exact"])
def test_a_cell_that_is_not_finite_spoils_the_bins_that_touch_it_alone(device, mode, value):
    """In the slower path; the compiled operators have their own sums."""
    features = torch.rand(1, 2, 12, 12, device=device)
    spoiled = features.clone()
    spoiled[0, 0, 1, 1] = value
    boxes = torch.tensor([[0, 0.0, 0.0, 12.0, 12.0]], device=device)
    with _extension.use_backend("eager"):
        options = dict(sampling_ratio=2, aligned=True, mode=mode)
        pooled, expected = (roi_align(x, boxes, (4, 4), **options) for x in (spoiled, features))
    same = pooled == expected
    assert same[:, 1].all() and same[0, 0, 1:].all() and same[0, 0, :, 1:].all()
    if value == -math.inf and mode == "pool":
        assert pooled[0, 0, 0, 0] > 0  # of the cells around it
    else:
        assert pooled[0, 0, 0, 0].isnan() if math.isnan(value) else pooled[0, 0, 0, 0] == value


@pytest.mark.parametrize("mode", ["max", "pool"])
@pytest.mark.parametrize("extent", [50.0, 1e5, 1e9])
def test_a_huge_box_takes_no_more_than_the_map(mode, extent):
    """Of its samples the slower path keeps those that may lie on the map."""
    box = torch.tensor([-extent, extent])
    options = RoIOptions([1.0], 7, 7, 0, True, mode, 224.0, 4)
    axis = roi_align_eager._axis(box[0], box[1], 7, 40, options)
    assert len(axis.bins) <= 7 and len(axis.weights) <= 4 * 40 + 200
    assert (
        axis.inside.view(len(axis.bins), -1).any(0).all()
        and axis.inside.view(len(axis.bins), -1).any(1).all()
    )


@pytest.mark.parametrize(
    "value", [0.49999997, 0.5, 1.5, 2.5, 8388607.0, 8388609.0, 16777215.0, 4194303.5, 1e30]
)
def test_coordinates_are_rounded_half_away_from_zero(value):
    for sign in (1, -1):
        x = torch.tensor(sign * value)
        expected = int(Decimal(x.item()).to_integral_value(ROUND_HALF_UP))
        assert roi_align_eager._round_half_away(x).item() == expected
        assert round_half_away(np.float32(sign * value)) == expected


def test_gradients_by_boxes_are_exact_in_double_precision():
    """Each edge of a bin moves with the corners by shares such as 1/3, which float32 rounds."""
    torch.manual_seed(0)
    features = torch.rand(1, 1, 9, 9, dtype=torch.float64)
    grads = []
    for name in ("compiled", "eager") if _extension.is_available() else ("eager",):
        boxes = torch.tensor([[0, 1.1, 1.3, 7.7, 6.9]], dtype=torch.float64, requires_grad=True)
        with _extension.use_backend(name):
            roi_align(features, boxes, (3, 7), aligned=True, mode="exact").square().sum().backward()
        grads.append(boxes.grad)
    if len(grads) == 1:
        pytest.skip("nothing to compare with: the compiled operators are not built")
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-12, atol=1e-12)
