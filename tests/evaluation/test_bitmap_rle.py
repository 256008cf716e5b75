"""Bitmaps to RLE against pycocotools' encoder, byte for byte."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

pytest.importorskip("detectron2")

from mrcnn_ext.evaluation import bitmap_rle
from mrcnn_ext.evaluation.bitmap_rle import bitmap_to_rle, bitmaps_to_rle, encode_masks

pytestmark = pytest.mark.detectron2


def encode(bitmap):
    return mask_utils.encode(np.asfortranarray(bitmap.astype(np.uint8)))


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_random_pixels_in_a_random_part(density):
    random = np.random.default_rng(0)
    for _ in range(300):
        height, width = random.integers(1, 15, 2)
        top, left = random.integers(0, height), random.integers(0, width)
        bottom, right = random.integers(top, height) + 1, random.integers(left, width) + 1
        bitmap = np.zeros((height, width), bool)
        bitmap[top:bottom, left:right] = random.random((bottom - top, right - left)) < density
        assert bitmap_to_rle(bitmap) == encode(bitmap)


@pytest.mark.parametrize(
    "part",
    [
        np.s_[:, :],
        np.s_[:, 2:4],  # whole columns, which are one run
        np.s_[:, 5:],
        np.s_[3:, :],  # each column ends at the border, the next begins below it
        np.s_[:3, :],
        np.s_[-1, -1],
        np.s_[0, 0],
        np.s_[4:4, :],
    ],
)
def test_parts_at_the_border(part):
    bitmap = np.zeros((6, 8), bool)
    bitmap[part] = True
    assert bitmap_to_rle(bitmap) == encode(bitmap)


def test_bitmap_need_not_be_contiguous():
    bitmap = np.random.default_rng(0).random((40, 60)) < 0.5
    assert bitmap_to_rle(bitmap.T[::2]) == encode(bitmap.T[::2])


@pytest.mark.parametrize("at_once", [1, 100, 2**28])
def test_many_at_once_as_on_a_device(at_once, monkeypatch):
    monkeypatch.setattr(bitmap_rle, "_PIXELS", at_once)
    generator = torch.Generator().manual_seed(0)
    bitmaps = torch.rand(9, 6, 8, generator=generator) < torch.linspace(0, 1, 9)[:, None, None]
    bitmaps[0], bitmaps[-1] = False, True
    bitmaps[1, :, :] = torch.arange(6)[:, None] == 5
    expected = [encode(bitmap.numpy()) for bitmap in bitmaps]
    assert bitmaps_to_rle(bitmaps) == expected == encode_masks(bitmaps)
    assert bitmaps_to_rle(bitmaps[:0]) == [] and bitmaps_to_rle(bitmaps.transpose(1, 2)) == [
        encode(bitmap.T.numpy()) for bitmap in bitmaps
    ]
