"""What RoI pooling computes, against the definitions and against torchvision and detectron2."""

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roi_align_reference import roi_align_reference

from mrcnn_ext.layers import roi_align, roi_align_pyramid
from mrcnn_ext.layers.roi_align import MODES

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
def test_matches_the_definition(backend, device, problem):
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


