"""Masks to RLE against a paste in float64, pycocotools' encoder, and detectron2's paste, byte for byte."""

import json
import sys

import numpy as np
import pytest
import torch
from operators_alone import run_alone
from pycocotools import mask as mask_utils

from mrcnn_ext.layers import masks_to_rle
from mrcnn_ext.ops import _extension


@pytest.fixture(params=["compiled", "eager"])
def backend(request):
    if request.param == "compiled" and not _extension.is_available():
        pytest.skip("the compiled operators are not built")
    with _extension.use_backend(request.param):
        yield request.param


needs_compiled = pytest.mark.skipif(
    not _extension.is_available(), reason="the compiled operators are not built"
)


def instances(R, m, height, width, seed=0, noise=False):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(R, 1, m, m, generator=generator)
    masks = masks if noise else torch.nn.functional.avg_pool2d(masks, 5, 1, 2) * 6
    size = torch.exp(torch.rand(R, 2, generator=generator) * np.log(min(height, width)))
    centre = torch.rand(R, 2, generator=generator) * torch.tensor([width, height])
    return masks.sigmoid(), torch.cat([centre - size / 2, centre + size / 2], dim=1)


def paste(mask, box, height, width):
    """Probabilities in float64: bilinear between cell centres and zeros around them; zero a pixel off the box."""
    x0, y0, x1, y1 = box.double().tolist()
    padded = np.pad(mask.double().numpy(), 1)

    def axis(pixels, low, high, cells):
        position = (np.arange(pixels) + 0.5 - low) / (high - low) * cells + 0.5  # in cells of the padded mask
        position = np.clip(position, 0, cells + 1)
        cell = np.minimum(position.astype(int), cells)
        near = (np.arange(pixels) >= np.floor(low) - 1) & (np.arange(pixels) < np.ceil(high) + 1)
        return cell, position - cell, near

    (row, n, near_y), (column, w, near_x) = (
        axis(height, y0, y1, mask.shape[0]),
        axis(width, x0, x1, mask.shape[1]),
    )
    n, row = n[:, None], row[:, None]
    value = (1 - n) * ((1 - w) * padded[row, column] + w * padded[row, column + 1]) + n * (
        (1 - w) * padded[row + 1, column] + w * padded[row + 1, column + 1]
    )
    return np.where(near_y[:, None] & near_x, value, 0)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("m", [1, 2, 28, 112])
def test_pixels_of_the_paste(m, threshold, backend):
    height, width = 97, 141
    masks, boxes = instances(15, m, height, width)
    rles = masks_to_rle(masks, boxes, (height, width), threshold)
    for mask, box, rle in zip(masks[:, 0], boxes, rles, strict=True):
        probability = paste(mask, box, height, width)
        clear = abs(probability - threshold) > 1e-4
        assert np.array_equal(mask_utils.decode(rle)[clear], (probability >= threshold)[clear])


@pytest.mark.parametrize("noise", [False, True])
def test_string_is_cocos(noise, backend):
    masks, boxes = instances(30, 28, 200, 333, noise=noise)
    for rle in masks_to_rle(masks, boxes, (200, 333)):
        assert rle["size"] == [200, 333]
        assert rle == mask_utils.encode(np.asfortranarray(mask_utils.decode(rle)))


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (640, 853), (2100, 70)])
def test_any_image_size(size, backend):
    masks, boxes = instances(10, 28, *size, seed=3)
    boxes[0] = torch.tensor([0.0, 0.0, size[1], size[0]])
    masks[0] = 4  # so that the corners, where it has fallen to about a quarter, are within
    for rle in masks_to_rle(masks, boxes, size):
        assert rle == mask_utils.encode(np.asfortranarray(mask_utils.decode(rle)))
    assert mask_utils.decode(masks_to_rle(masks[:1], boxes[:1], size)[0]).all()


@pytest.mark.detectron2
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("m", [7, 14, 28, 56])
def test_equals_detectron2_byte_for_byte(m, noise, threshold, backend):
    paste_masks_in_image = pytest.importorskip("detectron2.layers").paste_masks_in_image
    height, width = 180, 233
    masks, boxes = instances(60, m, height, width, seed=m, noise=noise)
    boxes[::3, 0::2] = boxes[::3, 0::2].clamp(0, width)  # a third as detections are, within the image
    boxes[::3, 1::2] = boxes[::3, 1::2].clamp(0, height)
    bitmaps = paste_masks_in_image(masks[:, 0], boxes, (height, width), threshold).numpy()
    expected = [mask_utils.encode(np.asfortranarray(bitmap)) for bitmap in bitmaps]
    assert masks_to_rle(masks, boxes, (height, width), threshold) == expected


def odd_instances():
    boxes = [
        [5, 5, 5, 20],  # no width
        [8, 9, 8, 9],  # no extent at all
        [20.2, 5, 19.8, 30],  # back to front by less than a pixel
        [40, 30, 10, 5],  # back to front
        [-90, 5, -50, 20],  # left of the image
        [500, 5, 600, 20],  # right of it
        [5, -70, 20, -3],  # above
        [-1e4, -1e4, 1e4, 1e4],  # much larger
        [-1e30, -1e30, 1e30, 1e30],
        [10, 10, 10 + 1e-30, 30],
        [3, 3, 3.4, 3.4],  # within a pixel
        [10.5, 10.5, 20.5, 20.5],
        [0, 0, 64, 48],
    ]
    return instances(len(boxes), 28, 48, 64)[0], torch.tensor(boxes, dtype=torch.float32)


@needs_compiled
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_odd_boxes_and_values_are_alike_on_both_paths(threshold):
    masks, boxes = odd_instances()
    masks[0, 0, 3, 4:9], masks[-1, 0, 10:15, 4:9], masks[-2, 0, 5, 5] = torch.nan, torch.nan, torch.inf
    compiled = masks_to_rle(masks, boxes, (48, 64), threshold)
    with _extension.use_backend("eager"):
        assert masks_to_rle(masks, boxes, (48, 64), threshold) == compiled


def test_box_off_the_image_has_no_pixels(backend):
    masks, boxes = odd_instances()
    area = mask_utils.area(masks_to_rle(torch.ones_like(masks), boxes, (48, 64)))
    assert area[[0, 1, 4, 5, 6]].tolist() == [0] * 5
    assert area[7] == area[8] == area[12] == 48 * 64


def test_whole_masks_and_empty_masks(backend):
    boxes = torch.tensor([[10.0, 20.0, 30.0, 50.0]])
    (full,) = masks_to_rle(torch.full((1, 28, 28), 0.9), boxes, (100, 120))
    assert mask_utils.toBbox(full).tolist() == [10, 20, 20, 30] and mask_utils.area(full) == 600
    (empty,) = masks_to_rle(torch.full((1, 28, 28), 0.1), boxes, (100, 120))
    assert empty == mask_utils.encode(np.zeros((100, 120), np.uint8, order="F"))


def test_either_shape_any_dtype_no_instance(backend):
    masks, boxes = instances(5, 14, 60, 80)
    expected = masks_to_rle(masks, boxes, (60, 80))
    assert masks_to_rle(masks[:, 0], boxes, torch.Size((60, 80))) == expected
    assert masks_to_rle(masks.double().requires_grad_(), boxes.double(), (60, 80)) == expected
    half = masks.bfloat16()
    assert masks_to_rle(half, boxes, (60, 80)) == masks_to_rle(half.float(), boxes, (60, 80))
    assert masks_to_rle(masks[:0], boxes[:0], (60, 80)) == []
    json.dumps([{**rle, "counts": rle["counts"].decode()} for rle in expected])


def test_masks_need_not_be_square_nor_contiguous(backend):
    masks, boxes = instances(5, 14, 60, 80)
    tall = masks[:, 0, :, 2:9].transpose(1, 2)
    rles = masks_to_rle(tall, boxes, (60, 80))
    assert rles == masks_to_rle(tall.contiguous(), boxes, (60, 80))
    probability = paste(tall[0], boxes[0], 60, 80)
    clear = abs(probability - 0.5) > 1e-4
    assert np.array_equal(mask_utils.decode(rles[0])[clear], (probability >= 0.5)[clear])


def test_masks_of_any_device(device):
    masks, boxes = instances(5, 14, 60, 80)
    assert masks_to_rle(masks.to(device), boxes.to(device), (60, 80)) == masks_to_rle(masks, boxes, (60, 80))


def run(program, **environment):
    result = run_alone(program, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


COMPARE = """
import torch
from mrcnn_ext.ops import _extension, masks_to_rle
generator = torch.Generator().manual_seed(0)
masks = torch.rand(300, 28, 28, generator=generator)
corner = torch.rand(300, 2, generator=generator) * 150
boxes = torch.cat([corner, corner + torch.rand(300, 2, generator=generator) * 200], dim=1)
compiled = masks_to_rle(masks, boxes, (300, 320))
with _extension.use_backend("eager"):
    print(compiled == masks_to_rle(masks, boxes, (300, 320)), torch.backends.cpu.get_cpu_capability())
"""


@needs_compiled
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_rounds_as_grid_sample_does_with_other_instruction_sets(capability):
    assert run(COMPARE, ATEN_CPU_CAPABILITY=capability).startswith("True")


MEMORY = """
import resource, torch
from mrcnn_ext.layers import masks_to_rle
masks = torch.nn.functional.avg_pool2d(torch.randn(1000, 28, 28), 5, 1, 2).mul(6).sigmoid()
corner = torch.rand(1000, 2) * torch.tensor([3000, 2000])
boxes = torch.cat([corner, corner + 200 + torch.rand(1000, 2) * torch.tensor([2800, 1800])], dim=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
masks_to_rle(masks, boxes, (4000, 6000))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@needs_compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_of_a_thousand_instances_on_a_large_image():
    assert int(run(MEMORY)) < 500 * 1000 / 4  # kilobytes


@needs_compiled
def test_operator_passes_opcheck():
    masks, boxes = instances(3, 14, 60, 80)
    args = (masks[:, 0], boxes, 60, 80, 0.5)
    torch.library.opcheck(torch.ops.mrcnn_ext.masks_to_rle.default, args)


MASKS, BOXES = torch.zeros(2, 1, 4, 4), torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3, 4, 4), BOXES, (5, 5)), ValueError, r"masks must have shape .*got \(2, 3, 4, 4\)"),
        ((torch.zeros(2, 0, 4), BOXES, (5, 5)), ValueError, "masks must have shape"),
        ((MASKS, torch.zeros(3, 4), (5, 5)), ValueError, "boxes must have shape .* R = 2"),
        ((MASKS, torch.zeros(2, 5), (5, 5)), ValueError, "boxes must have shape"),
        ((MASKS, BOXES / 0, (5, 5)), ValueError, "boxes must be finite, got .*nan"),
        ((MASKS, BOXES, (0, 5)), ValueError, "image_size must be a positive height and width"),
        ((MASKS, BOXES, (5, 5), -0.5), ValueError, "threshold must be at least 0, got -0.5"),
        ((MASKS, BOXES, (5, 5), float("nan")), ValueError, "threshold must be at least 0, got nan"),
        ((MASKS > 0, BOXES, (5, 5)), TypeError, "masks must be floating point, got torch.bool"),
        ((MASKS.numpy(), BOXES, (5, 5)), TypeError, "masks must be a tensor, got ndarray"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        masks_to_rle(*arguments)
