"""LazyMasks: the pasted masks, seen through detectron2's Instances."""

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils

from mrcnn_ext.modeling import LazyMasks

pytestmark = pytest.mark.detectron2

SIZE = (40, 50)


def make(count=4, seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corners, corners + 5 + torch.rand(count, 2, generator=generator) * 15], dim=1)
    return LazyMasks(torch.rand(count, 1, 28, 28, generator=generator), boxes, size)


def pasted(lazy):
    return paste_masks_in_image(lazy.masks[:, 0], lazy.boxes, lazy.image_size)


def test_looked_at_in_any_way_it_is_the_pasted_masks():
    lazy = make()
    expected = pasted(lazy)
    assert expected.any() and not expected.all()
    assert len(lazy) == 4 and lazy.shape == expected.shape
    assert torch.equal(lazy.tensor, expected)
    assert torch.equal(torch.stack(list(lazy)), expected)
    for index in (-1, np.int64(1), torch.tensor(2), torch.tensor([0.1, 0.9]).argmax()):
        assert torch.equal(lazy[index], expected[int(index)])
    assert np.array_equal(np.asarray(lazy), expected.numpy())
    assert np.asarray(lazy, dtype=np.uint8).dtype == np.uint8
    with pytest.raises(IndexError, match="mask 4 of 4"):
        lazy[4]


@pytest.mark.parametrize("item", [slice(1, 3), torch.tensor([True, False, True, True]), torch.tensor([3, 0])])
def test_indexing_instances_keeps_it_lazy(item):
    instances = Instances(SIZE, pred_boxes=Boxes(make().boxes), pred_masks=make())
    part = instances[item].to("cpu").pred_masks.to("cpu", non_blocking=True)
    assert isinstance(part, LazyMasks)
    assert torch.equal(part.tensor, pasted(make())[item])
    assert torch.equal(instances[2].pred_masks.tensor, pasted(make())[2:3])


def test_instances_can_be_joined():
    parts = [Instances(SIZE, pred_masks=make(seed=seed)) for seed in (1, 2)]
    joined = Instances.cat(parts).pred_masks
    assert torch.equal(joined.tensor, torch.cat([pasted(make(seed=1)), pasted(make(seed=2))]))
    with pytest.raises(ValueError, match="one image size"):
        LazyMasks.cat([make(), make(size=(41, 50))])


def test_rle_is_that_of_the_pasted_masks():
    lazy = make()
    expected = [mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in pasted(lazy)]
    assert lazy.to_rle() == expected
    assert make(0).to_rle() == [] and make(0).tensor.shape == (0, *SIZE)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"masks must have shape \(N, 1, m, m\), got \(2, 28, 28\)"):
        LazyMasks(torch.rand(2, 28, 28), torch.rand(2, 4), SIZE)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\) with masks' N = 2, got \(3, 4\)"):
        LazyMasks(torch.rand(2, 1, 28, 28), torch.rand(3, 4), SIZE)
