"""Masks cropped to boxes against torchvision's roi_align of each."""

import pytest
import torch
from torchvision.ops import roi_align

from mrcnn_ext.ops import _extension
from mrcnn_ext.ops.mask_cropping import can_crop_masks, crop_masks

pytestmark = pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")


def case():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 60, 90, generator=generator) > 0.5
    masks[1] = True
    corner = torch.rand(40, 2, generator=generator) * 80 - 10
    boxes = torch.cat([corner, corner + torch.rand(40, 2, generator=generator) * 70], 1)
    boxes[0] = torch.tensor([30.0, 40, 10, 20])  # turned round
    boxes[1] = torch.tensor([500.0, 500, 600, 600])  # elsewhere
    boxes[2] = torch.tensor([0.0, 0, 90, 60])
    boxes[3] = torch.tensor([7.0, 8, 7, 8])
    boxes[4] = torch.tensor([-0.9, -0.9, -0.2, -0.2])
    return masks, torch.arange(40) % 5, boxes


@pytest.mark.parametrize("size", [28, 5])
def test_bit_for_bit(size, thread_counts):
    masks, index, boxes = case()
    rois = torch.cat([index[:, None].float(), boxes], 1)
    expected = roi_align(masks[:, None].float(), rois, size, 1.0, 0, aligned=True)[:, 0] >= 0.5
    assert expected.any() and not expected.all()
    for _ in thread_counts:
        assert torch.equal(crop_masks(masks, index, boxes, size), expected)
    wider = torch.zeros(5, 60, 99, dtype=torch.bool)
    wider[..., 9:] = masks
    assert torch.equal(crop_masks(wider[..., 9:], index, boxes, size), expected)


def test_none_and_wrong_ones():
    masks, index, boxes = case()
    assert crop_masks(masks, index[:0], boxes[:0], 7).shape == (0, 7, 7)
    assert can_crop_masks(masks, boxes) and can_crop_masks(masks, boxes[:0])
    assert not can_crop_masks(masks.float(), boxes) and not can_crop_masks(masks[:0], boxes)
    boxes[7, 2] = float("nan")
    assert not can_crop_masks(masks, boxes)
    with pytest.raises(ValueError, match="boxes must be finite and within 1e.*06 pixels, got nan"):
        crop_masks(masks, index, boxes, 7)
    with pytest.raises(IndexError, match="index must be below 5, got 5"):
        crop_masks(masks, index + 1, boxes.nan_to_num(), 7)
    with pytest.raises(ValueError, match=r"boxes must be \(40, 4\) float32, got \[39, 4\]"):
        crop_masks(masks, index, boxes[:39], 7)


def test_opcheck():
    masks, index, boxes = case()
    torch.library.opcheck(torch.ops.mrcnn_ext.crop_masks, (masks, index, boxes, 7))
