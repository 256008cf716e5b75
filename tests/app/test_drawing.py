"""What is drawn is where it belongs."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances

from mrcnn_ext.app.drawing import (
    Names,
    Shown,
    annotated,
    colored,
    data_uri,
    enlarged,
    heat_over,
    keypoint_heat,
    likely,
    mask_heat,
    roi_picture,
    shapes,
)
from mrcnn_ext.layers import LazyMasks
from mrcnn_ext.ops.roi_options import RoIOptions
from mrcnn_ext.ops.roi_sampling import roi_samples

SIZE = (48, 64)
NAMES = Names(["cat", "dog"])


@pytest.fixture
def instances():
    """Two: a ring-shaped mask with a keypoint in its centre, and one without anything above 0.5."""
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [44.0, 4.0, 60.0, 20.0]])
    masks = torch.zeros(2, 1, 16, 16)
    masks[0] = 0.9
    masks[0, :, 5:11, 5:11] = 0.1
    heatmaps = torch.zeros(2, 2, 8, 8)
    heatmaps[:, 0, 3, 4] = 9.0
    found = Instances(SIZE, pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.6]))
    found.pred_classes = torch.tensor([1, 0])
    found.pred_masks = LazyMasks(masks, boxes, SIZE)
    found.pred_keypoints = torch.tensor([[[24.0, 23.0, 0.8], [9.0, 9.0, 0.01]]] * 2)
    found.pred_keypoint_heatmaps = heatmaps.half()
    found.number = torch.tensor([3, 5])
    return found


def test_shapes_hold_what_the_instances_do(noise, instances):
    drawn = shapes(noise, instances, Names(["cat", "dog"], ["nose"], [(0, 1)]))
    one, other = drawn["objects"]
    assert (drawn["width"], drawn["height"]) == (64, 48)
    assert [one["id"], other["id"]] == [3, 5]
    assert (one["label"], one["score"], one["box"]) == ("dog", 0.9, [8, 8, 40, 40])
    assert one["points"] == [[24.5, 23.5, 0.8, "nose"], None]  # the second is below the least score
    assert one["lines"] == [[0, 1]]
    assert one["color"] != other["color"]
    assert other["mask"] == ""
    image = Image.open(io.BytesIO(base64.b64decode(drawn["image"].partition(",")[2])))
    assert image.size == (64, 48)


def test_keypoints_that_are_not_finite_are_left_out(noise, instances):
    instances.pred_keypoints[0, 0, 2] = float("inf")
    assert shapes(noise, instances, NAMES)["objects"][0]["points"] == [None, None]


def test_outlines_follow_the_mask_and_its_hole(noise, instances):
    path = shapes(noise, instances, NAMES)["objects"][0]["mask"]
    outer, hole = [np.array(re.findall(r"([\d.]+) ([\d.]+)", part), float) for part in path.split("Z")[:2]]
    mask = np.asarray(instances.pred_masks[0])
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(np.r_[outer.min(0), outer.max(0)] - corners).max() <= 0.25
    inside = ~mask[rows[0] : rows[-1], columns[0] : columns[-1]]
    assert hole.ptp(0).max() if hasattr(hole, "ptp") else np.ptp(hole, axis=0).max() > 0
    assert abs(np.ptp(hole, axis=0) - np.sqrt(inside.sum())).max() <= 1


def test_what_is_switched_off_is_not_drawn(noise, instances):
    drawn = shapes(noise, instances, NAMES, Shown(False, False, False, False))
    assert not drawn["boxes"] and not drawn["labels"]
    assert all("mask" not in one and "points" not in one for one in drawn["objects"])
    nothing = annotated(noise, instances, NAMES, Shown(False, False, False, False))
    everything = annotated(noise, instances, NAMES)
    assert nothing.shape == everything.shape and not np.array_equal(nothing, everything)


def test_large_images_are_sent_smaller(instances):
    drawn = shapes(np.zeros((1000, 3200, 3), np.uint8), instances[:0], NAMES)
    image = Image.open(io.BytesIO(base64.b64decode(drawn["image"].partition(",")[2])))
    assert image.size == (1600, 500) and drawn["width"] == 3200


def test_a_data_uri_holds_the_image(noise):
    image = Image.open(io.BytesIO(base64.b64decode(data_uri(noise, lossless=True).partition(",")[2])))
    assert image.format == "PNG" and np.array_equal(np.array(image), noise)


def test_mask_heat_is_what_the_head_gave(instances):
    heat = mask_heat(instances, SIZE)
    assert heat[:7].max() == 0 and heat[:, 42:].max() == 0
    assert heat[12, 12] == pytest.approx(0.9) and heat[24, 24] == pytest.approx(0.1)
    # From 0.5 on it is the mask.
    mask = np.asarray(instances.pred_masks[0])
    assert ((heat >= 0.5) == mask).mean() > 0.99


def test_keypoint_heat_has_its_peak_at_the_place(instances):
    heat = keypoint_heat(instances[:1], SIZE, keypoint=0)
    y, x = np.unravel_index(heat.argmax(), SIZE)
    # Cell (3, 4) of 8 x 8 over a box of 32 pixels from 8: its centre is 8 + 4 (k + 1/2).
    assert abs(y + 0.5 - 22) <= 1 and abs(x + 0.5 - 26) <= 1
    assert heat.max() > 0.7 and heat[10, 10] < 0.01
    larger = keypoint_heat(instances[:1], SIZE, box_scale=1.5, keypoint=0)
    assert (larger > 0.5).sum() > (heat > 0.5).sum()
    assert (
        keypoint_heat(instances[:1], SIZE).min() < keypoint_heat(instances[:1], SIZE)[10, 10]
    )  # with the flat one


def test_likely_is_a_softmax_over_its_highest_value():
    maps = likely(torch.tensor([[[1000.0, 1001.0]], [[0.0, 0.0]]]))
    assert torch.allclose(maps, torch.tensor([[[np.exp(-1), 1.0]], [[1.0, 1.0]]], dtype=torch.float32))


def test_colours_rise_from_dark_to_bright(noise):
    ramp = colored(np.linspace(0, 1, 5)[None])[0].astype(int).sum(1)
    assert (np.diff(ramp) > 0).all()
    assert heat_over(np.zeros((1000, 3200, 3), np.uint8), np.zeros((1000, 3200), np.float32)).shape == (
        500,
        1600,
        3,
    )
    heat = np.zeros(SIZE, np.float32)
    heat[10:20, 10:20] = 1
    drawn = heat_over(noise, heat).astype(int)
    assert drawn[10:20, 10:20].mean() > 2 * drawn[30:, 30:].mean()


def test_enlarged_pixels_are_squares():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(enlarged(image, 8)[::4, ::4], image) and enlarged(image, 8).shape == (8, 8, 3)


def test_samples_are_drawn_where_they_read():
    """On a dark image of 64 x 64, which the model saw at twice the size, with cells of 8 of its pixels."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    box = torch.tensor([32.0, 32.0, 96.0, 96.0])
    seen = roi_samples(box, RoIOptions([1 / 8], 2, 2, 1, True, "avg", 224.0, 4))
    assert seen.x.points.flatten().tolist() == [5.5, 9.5]  # cells: 48 and 80 pixels
    window = (0.0, 0.0, 128.0, 128.0)
    drawn = roi_picture(pixels, (128, 128), box.tolist(), seen, 8.0, (255, 0, 0), window, side=512)
    assert drawn.shape == (512, 512, 3)
    for y in (48, 80):
        for x in (48, 80):
            assert drawn[4 * y, 4 * x].tolist() == [255, 0, 0]
    assert drawn[4 * 48, 4 * 56].tolist() != [255, 0, 0]
    assert drawn[4 * 60, 4 * 32].min() > 200  # the box is white
    nothing = roi_picture(
        pixels, (128, 128), box.tolist(), seen, 8.0, (255, 0, 0), (200.0, 200.0, 264.0, 264.0)
    )
    assert nothing.max() < 60  # beyond the image
