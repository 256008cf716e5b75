"""Bitmaps to RLE against pycocotools' encoder, byte for byte."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

pytest.importorskip("detectron2")

from mrcnn_ext.evaluation.bitmap_rle import bitmap_to_rle

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
