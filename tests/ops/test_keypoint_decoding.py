"""Keypoint decoding against the resized heatmap itself, in float64, and against detectron2's function."""

import numpy as np
import pytest
import torch

from mrcnn_ext.layers import heatmaps_to_keypoints
from mrcnn_ext.ops import _extension

BOX_SIDES = {"small": (1, 60), "middle": (60, 400), "large": (400, 2000)}


@pytest.fixture(params=["compiled", "eager"])
def backend(request):
    if request.param == "compiled" and not _extension.is_available():
        pytest.skip("the compiled operators are not built")
    with _extension.use_backend(request.param):
        yield request.param


def peaks(shape, generator, width=(0.7, 4.0)):
    """One Gaussian per map, its centre anywhere, the border included."""
    *batch, H, W = shape
    y, x = torch.arange(H)[:, None], torch.arange(W)
    cy, cx, sigma = (torch.rand(*batch, 1, 1, generator=generator) for _ in range(3))
    sigma = width[0] + sigma * (width[1] - width[0])
    return torch.exp(-((y - cy * (H - 1)) ** 2 + (x - cx * (W - 1)) ** 2) / (2 * sigma**2))


def heatmaps(kind, R, K, H, W, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (R, K, H, W)
    noise = torch.randn(shape, generator=generator)
    if kind == "noise":
        return noise
    if kind == "smooth":
        return torch.nn.functional.avg_pool2d(noise, 7, 1, 3) * 7
    if kind == "peak":
        return 14 * peaks(shape, generator) + 0.3 * noise - 6
    first, second = (14 * peaks(shape, generator, (1.5, 4)) for _ in range(2))
    return first + second + 0.01 * noise  # kind == "two peaks"


def boxes(R, sides, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = np.log(sides)
    size = torch.exp(torch.rand(R, 2, generator=generator) * (high - low) + low)
    corner = torch.rand(R, 2, generator=generator) * 300 - 50
    return torch.cat([corner, corner + size], dim=1)


def resize(heatmap, height, width):
    """Bicubic (a = -0.75) by its definition, in float64, at positions in float32 as PyTorch's."""

    def matrix(pixels, cells):
        out = np.zeros((pixels, cells))
        position = (
            np.float32(cells) / np.float32(pixels) * (np.arange(pixels, dtype=np.float32) + np.float32(0.5))
        )
        position = (position - np.float32(0.5)).astype(np.float64)
        for tap in range(-1, 3):
            cell = np.floor(position) + tap
            d = np.abs(position - cell)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            far = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            np.add.at(
                out,
                (np.arange(pixels), np.clip(cell, 0, cells - 1).astype(int)),
                np.where(d <= 1, near, far),
            )
        return out

    return matrix(height, heatmap.shape[0]) @ heatmap.astype(np.float64) @ matrix(width, heatmap.shape[1]).T


def shortfalls(maps, rois, decoded):
    """How far each decoded pixel's value is below the largest of its resized map; checks logit and score."""
    out = np.zeros(decoded.shape[:2])
    for r, (x0, y0, x1, y1) in enumerate(rois.numpy()):
        w, h = max(x1 - x0, np.float32(1)), max(y1 - y0, np.float32(1))
        columns, rows = int(np.ceil(w)), int(np.ceil(h))
        for k in range(maps.shape[1]):
            x, y, logit, score = decoded[r, k].numpy()
            column, row = (x - x0) / w * columns - 0.5, (y - y0) / h * rows - 0.5
            assert (
                abs(column - round(column)) < 0.05 and abs(row - round(row)) < 0.05
            )  # the centre of a pixel
            resized = resize(maps[r, k].numpy(), rows, columns)
            value = resized[round(row), round(column)]
            assert logit == pytest.approx(value, abs=2e-4)
            cells = maps[r, k].numpy().astype(np.float64)
            assert score == pytest.approx(1 / np.exp(cells - logit).sum(), rel=1e-4)
            out[r, k] = resized.max() - value
    return out


@pytest.mark.parametrize("sides", BOX_SIDES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "peak", "two peaks"])
def test_stock_is_the_largest_pixel_of_the_resized_map(kind, sides, backend):
    R = 2 if sides == "large" else 12
    maps, rois = heatmaps(kind, R, 5, 56, 56), boxes(R, BOX_SIDES[sides])
    short = shortfalls(maps, rois, heatmaps_to_keypoints(maps, rois))
    assert short.max() < (1e-4 if backend == "compiled" else 0.1)
    assert (short < 1e-4).mean() > 0.95


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (14, 14), (28, 40), (64, 17)])
def test_any_heatmap_shape(shape, backend):
    maps, rois = heatmaps("peak", 6, 3, *shape), boxes(6, (3, 300))
    assert shortfalls(maps, rois, heatmaps_to_keypoints(maps, rois)).max() < 1e-4


@pytest.mark.detectron2
@pytest.mark.parametrize("kind", ["noise", "smooth", "peak", "two peaks"])
@pytest.mark.parametrize("sides", BOX_SIDES)
def test_agrees_with_detectron2(kind, sides, backend):
    stock = pytest.importorskip("detectron2.structures").heatmaps_to_keypoints
    R = 2 if sides == "large" else 12
    maps, rois = heatmaps(kind, R, 7, 56, 56, seed=1), boxes(R, BOX_SIDES[sides], seed=1)
    expected, decoded = stock(maps, rois), heatmaps_to_keypoints(maps, rois)
    tied = (expected[..., 2] - decoded[..., 2]).abs() < 1e-4
    near = ((expected - decoded)[..., :2].abs() <= 0.5).all(dim=2)
    if backend == "compiled":
        assert (near | tied).all()
    assert near.float().mean() > 0.95
    torch.testing.assert_close(decoded[near][:, 2:], expected[near][:, 2:], rtol=1e-4, atol=1e-4)


@pytest.mark.detectron2
def test_agrees_with_detectron2_on_degenerate_boxes(backend):
    stock = pytest.importorskip("detectron2.structures").heatmaps_to_keypoints
    rois = torch.tensor(
        [[5, 5, 5, 5], [10, 10, 4, 30], [3, 40, 60, 2.5], [0, 0, 1, 500], [7, 8, 900, 8.4], [1, 1, 2.01, 3]]
    ).float()
    maps = heatmaps("peak", len(rois), 3, 56, 56)
    torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), stock(maps, rois), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [0, 27, 55])
@pytest.mark.parametrize("column", [0, 27, 55])
def test_peaks_at_edges_and_corners(row, column, backend):
    maps = torch.zeros(1, 1, 56, 56)
    maps[0, 0, row, column] = 10
    rois = torch.tensor([[20.0, 30.0, 20.0 + 56 * 5, 30.0 + 56 * 7]])
    x, y = heatmaps_to_keypoints(maps, rois)[0, 0, :2].tolist()
    # Cubic convolution replicates the border, so that a peak there is a plateau up to the box's side.
    assert x == pytest.approx(20 + 5 * (column + 0.5), abs=2.5)
    assert y == pytest.approx(30 + 7 * (row + 0.5), abs=3.5)
    assert shortfalls(maps, rois, heatmaps_to_keypoints(maps, rois)).max() < 1e-4


def expected_similarity(heatmap, box, sigma, places):
    """Object keypoint similarity to places (P, 2), by COCO's formula, of a keypoint drawn from the softmax."""
    x0, y0, x1, y1 = box.tolist()
    H, W = heatmap.shape
    x = x0 + (torch.arange(W) + 0.5) * (x1 - x0) / W
    y = y0 + (torch.arange(H)[:, None] + 0.5) * (y1 - y0) / H
    area = 0.53 * (x1 - x0) * (y1 - y0)
    squared = (x - places[:, 0, None, None]) ** 2 + (y - places[:, 1, None, None]) ** 2
    similarity = torch.exp(-squared / (2 * area * (2 * sigma) ** 2))
    return (similarity * heatmap.flatten().softmax(0).view(H, W)).sum(dim=(1, 2))


@pytest.mark.parametrize("kind", ["noise", "peak", "two peaks"])
def test_oks_is_the_place_of_the_highest_expected_similarity(kind):
    maps, rois = heatmaps(kind, 4, 3, 28, 20), boxes(4, (20, 200))
    sigmas = torch.tensor([0.026, 0.05, 0.107])
    decoded = heatmaps_to_keypoints(maps, rois, "oks", sigmas)
    for r, (x0, y0, x1, y1) in enumerate(rois.tolist()):
        grid = torch.cartesian_prod(torch.linspace(x0, x1, 40), torch.linspace(y0, y1, 40))
        for k, sigma in enumerate(sigmas):
            found = expected_similarity(maps[r, k], rois[r], sigma, decoded[r, k, None, :2]).item()
            assert found > expected_similarity(maps[r, k], rois[r], sigma, grid).max() - 0.02
            assert decoded[r, k, 3].item() == pytest.approx(found, abs=0.05)


def test_of_two_peaks_oks_takes_the_one_with_more_around_it():
    maps = torch.full((1, 1, 56, 56), -20.0)
    maps[0, 0, 10, 10] = 1  # the largest cell
    maps[0, 0, 40:43, 40:43] = 0
    rois = torch.tensor([[0.0, 0.0, 56.0, 56.0]])
    decoded = heatmaps_to_keypoints(maps, rois, "oks", torch.tensor([0.1]))[0, 0]
    torch.testing.assert_close(decoded[:2], torch.tensor([41.5, 41.5]), rtol=0, atol=0.1)
    assert decoded[2] == 0  # the logit of that cell


def test_of_two_peaks_the_larger_wins(backend):
    maps = torch.zeros(2, 1, 56, 56)
    maps[0, 0, 10, 12], maps[0, 0, 40, 44] = 8, 8.01
    maps[1, 0, 10, 12], maps[1, 0, 40, 44] = 8.01, 8
    rois = torch.tensor([[0.0, 0.0, 560.0, 560.0]]).expand(2, 4)
    expected = torch.tensor([[444.5, 404.5], [124.5, 104.5]])
    torch.testing.assert_close(heatmaps_to_keypoints(maps, rois)[:, 0, :2], expected, rtol=0, atol=1)


def test_constant_map_gives_a_point_of_the_box(backend):
    rois = torch.tensor([[10.0, 20.0, 310.0, 520.0]])
    x, y, logit, score = heatmaps_to_keypoints(torch.full((1, 1, 56, 56), 3.0), rois)[0, 0].tolist()
    assert 10 < x < 310 and 20 < y < 520
    assert logit == pytest.approx(3, abs=1e-5) and score == pytest.approx(1 / 56**2, rel=1e-4)


@pytest.mark.parametrize("method", ["stock", "dark", "quadratic", "oks"])
@pytest.mark.parametrize(("R", "K"), [(0, 17), (3, 1), (2, 133)])
def test_any_number_of_boxes_and_keypoints(method, R, K, backend):
    sigmas = torch.full((K,), 0.05)
    decoded = heatmaps_to_keypoints(torch.randn(R, K, 12, 12), boxes(R, (5, 50)), method, sigmas)
    assert decoded.shape == (R, K, 4) and decoded.isfinite().all()


@pytest.mark.parametrize("method", ["stock", "dark", "quadratic", "oks"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_decodes_in_at_least_float32(method, dtype, backend):
    maps, rois = heatmaps("peak", 4, 3, 28, 28).to(dtype), boxes(4, (20, 300))
    sigmas = torch.full((3,), 0.05)
    decoded = heatmaps_to_keypoints(maps, rois, method, sigmas)
    wide = torch.promote_types(dtype, torch.float32)
    assert decoded.dtype == wide
    expected = heatmaps_to_keypoints(maps.float(), rois, method, sigmas).to(wide)
    tolerance = 1e-3 if dtype == torch.float64 else 0
    torch.testing.assert_close(decoded, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["stock", "dark", "quadratic", "oks"])
def test_autocast_changes_nothing(method, backend):
    maps, rois = heatmaps("peak", 4, 3, 28, 28), boxes(4, (20, 300))
    sigmas = torch.full((3,), 0.05)
    expected = heatmaps_to_keypoints(maps, rois, method, sigmas)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = heatmaps_to_keypoints(maps, rois, method, sigmas)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=0)


def test_input_is_left_alone(backend):
    maps, rois = heatmaps("peak", 2, 3, 28, 28).requires_grad_(), boxes(2, (20, 300))
    before = maps.detach().clone(), rois.clone()
    decoded = heatmaps_to_keypoints(maps, rois)
    assert not decoded.requires_grad
    assert torch.equal(maps, before[0]) and torch.equal(rois, before[1])


def test_non_contiguous_maps(backend):
    maps, rois = heatmaps("peak", 3, 4, 28, 28), boxes(3, (20, 300))
    expected = heatmaps_to_keypoints(maps, rois)
    strided = maps.to(memory_format=torch.channels_last)
    torch.testing.assert_close(heatmaps_to_keypoints(strided, rois), expected)


def test_boxes_are_decoded_alone_whatever_the_batch(backend, monkeypatch):
    maps, rois = heatmaps("peak", 7, 4, 28, 28), boxes(7, (20, 300))
    together = heatmaps_to_keypoints(maps, rois)
    monkeypatch.setattr("mrcnn_ext.ops.keypoint_decoding._SAMPLES_AT_A_TIME", 3 * 4 * 84**2)
    torch.testing.assert_close(heatmaps_to_keypoints(maps, rois), together)
    alone = torch.cat([heatmaps_to_keypoints(maps[[i]], rois[[i]]) for i in range(7)])
    torch.testing.assert_close(alone, together)


@pytest.mark.parametrize("method", ["dark", "quadratic"])
def test_expansion_recovers_a_gaussians_centre(method):
    centre = torch.tensor(
        [[20.3, 30.8], [25.5, 18.1], [35.0, 33.49]]
    )  # x, y in cells, where the first spans 0..1
    grid = torch.arange(56) + 0.5
    squared = (grid[:, None] - centre[:, 1, None, None]) ** 2 + (grid - centre[:, 0, None, None]) ** 2
    maps = -squared[:, None] / (2 * 1.7**2)  # the softmax is a Gaussian of 1.7 cells
    rois = torch.tensor([[100.0, 200.0, 100.0 + 56 * 4, 200.0 + 56 * 3]]).expand(3, 4)
    decoded = heatmaps_to_keypoints(maps, rois, method)[:, 0]
    expected = torch.tensor([100.0, 200.0]) + centre * torch.tensor([4.0, 3.0])
    torch.testing.assert_close(decoded[:, :2], expected, rtol=0, atol=0.01)


def test_dark_is_nearer_to_a_noisy_peak_than_the_largest_cell():
    generator = torch.Generator().manual_seed(0)
    centre = 10 + torch.rand(200, 2, generator=generator) * 36
    grid = torch.arange(56) + 0.5
    squared = (grid[:, None] - centre[:, 1, None, None]) ** 2 + (grid - centre[:, 0, None, None]) ** 2
    maps = torch.maximum(-squared / (2 * 2**2), torch.tensor(-8.0))
    maps = (maps + 0.1 * torch.randn(maps.shape, generator=generator))[:, None]
    rois = torch.tensor([[0.0, 0.0, 56.0, 56.0]]).expand(200, 4)
    error = {
        method: (heatmaps_to_keypoints(maps, rois, method)[:, 0, :2] - centre).norm(dim=1).mean()
        for method in ("stock", "dark")  # boxes as large as the heatmap: stock gives the largest cell
    }
    assert error["dark"] < 0.5 * error["stock"]


@pytest.mark.parametrize("method", ["dark", "quadratic"])
def test_expansion_leaves_the_border_alone(method):
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 0, 7] = 30
    decoded = heatmaps_to_keypoints(maps, torch.tensor([[0.0, 0.0, 80.0, 80.0]]), method)
    assert decoded[0, 0, :3].tolist() == [75, 5, 30]


class Decode(torch.nn.Module):
    def forward(self, maps, rois):
        return heatmaps_to_keypoints(maps, rois)


@pytest.mark.parametrize("method", ["stock", "dark", "oks"])
def test_compiles_without_a_graph_break(method, backend):
    maps, rois = heatmaps("peak", 3, 2, 14, 14), boxes(3, (20, 300))
    torch.compiler.reset()
    compiled = torch.compile(heatmaps_to_keypoints, fullgraph=True, backend="aot_eager")
    arguments = (maps, rois, method, torch.tensor([0.05, 0.1]))
    torch.testing.assert_close(compiled(*arguments), heatmaps_to_keypoints(*arguments))


def test_exports_to_plain_pytorch_operators():
    maps, rois = heatmaps("peak", 5, 2, 14, 14), boxes(5, (20, 300))
    count = torch.export.Dim("count", min=2, max=100)
    program = torch.export.export(
        Decode(), (maps[:3], rois[:3]), dynamic_shapes={"maps": {0: count}, "rois": {0: count}}
    )
    assert "mrcnn_ext" not in str(program.graph)
    with _extension.use_backend("eager"):
        expected = heatmaps_to_keypoints(maps, rois)
    torch.testing.assert_close(program.module()(maps, rois), expected)


@pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
def test_operator_passes_opcheck():
    sizes = torch.tensor([[100, 120], [1, 7]])
    for dtype in (torch.float32, torch.float64):
        args = (heatmaps("peak", 2, 3, 14, 14).to(dtype), sizes)
        torch.library.opcheck(torch.ops.mrcnn_ext.resized_heatmap_argmax.default, args)


def test_search_runs_on_every_device(device):
    maps, rois = heatmaps("peak", 4, 3, 56, 56), boxes(4, (20, 900))
    decoded = heatmaps_to_keypoints(maps.to(device), rois.to(device))
    assert decoded.device.type == device.type
    assert shortfalls(maps, rois, decoded.cpu()).max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4)), ValueError, "maps must have shape"),
        ((torch.zeros(2, 3, 0, 4), torch.zeros(2, 4)), ValueError, "maps must have shape"),
        ((torch.zeros(2, 0, 4, 4), torch.zeros(2, 4)), ValueError, "maps must have shape"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(3, 4)), ValueError, "rois must have shape .* R = 2"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)), ValueError, "rois must have shape"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), "argmax"), ValueError, "method must be one of stock"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), "oks"), ValueError, r"sigmas .* got none"),
        (
            (torch.zeros(2, 3, 4, 4), torch.zeros(2, 4), "oks", torch.ones(2)),
            ValueError,
            r"sigmas must have shape \(K,\) = \(3,\) .* got shape \(2,\)",
        ),
        ((torch.zeros(2, 3, 4, 4).int(), torch.zeros(2, 4)), TypeError, "maps must be floating point"),
        ((torch.zeros(2, 3, 4, 4), [[0, 0, 1, 1]] * 2), TypeError, "rois must be a tensor"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        heatmaps_to_keypoints(*arguments)
