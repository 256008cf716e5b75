"""Pasting masks: detectron2's pixels, bit for bit."""

import pytest
import torch

from mrcnn_ext.layers import paste_masks
from mrcnn_ext.ops import mask_pasting

BOXES = torch.tensor(
    [
        [3.2, 4.7, 20.1, 30.9],
        [-8.0, -3.5, 12.5, 9.25],  # over two borders
        [30.0, 20.0, 70.0, 60.0],
        [10.4, 10.4, 10.6, 10.9],  # less than a pixel
        [0.0, 0.0, 50.0, 40.0],  # the image
    ]
)


@pytest.mark.detectron2
@pytest.mark.parametrize("side", [14, 28])
def test_the_pixels_are_detectron2s(side):
    mask_ops = pytest.importorskip("detectron2.layers.mask_ops")
    masks = torch.rand(len(BOXES), side, side, generator=torch.Generator().manual_seed(side))
    for threshold in (0.0, 0.5, 0.9):
        expected = mask_ops.paste_masks_in_image(masks, BOXES, (40, 50), threshold)
        pasted = paste_masks(masks[:, None], BOXES, (40, 50), threshold)
        assert pasted.dtype == torch.bool and torch.equal(pasted, expected)
        assert torch.equal(paste_masks(masks, BOXES, (40, 50), threshold), expected)
        assert torch.equal(paste_masks(masks, BOXES, (40, 50), threshold, at_once=True), expected)


def test_parts_of_what_is_pasted_at_once(monkeypatch):
    masks = torch.rand(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(0))
    expected = paste_masks(masks, BOXES, (40, 50))
    for pixels in (1, 4000, 6000):
        monkeypatch.setattr(mask_pasting, "_PIXELS", pixels)
        assert torch.equal(paste_masks(masks, BOXES, (40, 50), at_once=True), expected)


def test_boxes_off_the_image_and_no_boxes_give_no_pixels():
    off = torch.tensor([[60.0, 5.0, 80.0, 9.0], [5.0, -20.0, 9.0, -10.0]])
    for at_once in (False, True):
        assert not paste_masks(torch.ones(2, 1, 28, 28), off, (40, 50), at_once=at_once).any()
        assert paste_masks(torch.ones(0, 1, 28, 28), off[:0], (40, 50), at_once=at_once).shape == (0, 40, 50)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"masks must have shape .* got \(2, 3, 28, 28\)"):
        paste_masks(torch.ones(2, 3, 28, 28), BOXES[:2], (40, 50))
    with pytest.raises(ValueError, match=r"boxes must have shape \(R, 4\) with masks' R = 2, got \(5, 4\)"):
        paste_masks(torch.ones(2, 1, 28, 28), BOXES, (40, 50))
