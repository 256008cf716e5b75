"""Pictures of detections: soft masks, stable colours, labels off their objects and never over one another."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("detectron2")
from mrcnn_ext.inference.detections import Detection, detections_of
from mrcnn_ext.inference.drawing import Painter, Style, color_of
from mrcnn_ext.inference.drawing.labels import Placer
from mrcnn_ext.inference.drawing.shapes import draw_mask

pytestmark = pytest.mark.detectron2

GRAY = 90


def disc(size=(100, 140), centre=(50, 60), radius=30):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def detection(mask=None, box=(30, 20, 90, 80), **options):
    one = Detection(category=0, name="disc", score=0.9, box=np.array(box, float), **options)
    if mask is not None:
        ys, xs = np.nonzero(mask)
        one.corner = (int(xs.min()), int(ys.min()))
        one.mask = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    return one


def image(height=100, width=140):
    return np.full((height, width, 3), GRAY, np.uint8)


def test_results_are_read_back():
    mask = disc()
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    record = {"category_id": 7, "bbox": [30.0, 20.0, 60.0, 60.0], "score": 0.5, "track_id": 4}
    record["segmentation"] = {**rle, "counts": rle["counts"].decode()}
    record["keypoints"] = [1.0, 2.0, 0.3, 4.0, 5.0, 0.9]
    (one,) = detections_of([record, {**record, "score": 0.4}], {3: "a", 7: "b"}, min_score=0.5)
    assert (one.category, one.name, one.track, one.area) == (1, "b", 4, mask.sum())
    assert one.box.tolist() == [30, 20, 90, 80]
    assert one.keypoints.tolist() == [[1.5, 2.5, 0.3], [4.5, 5.5, 0.9]]
    x, y = one.corner
    back = np.zeros_like(mask)
    back[y : y + one.mask.shape[0], x : x + one.mask.shape[1]] = one.mask
    assert (back == mask).all()


def test_a_masks_edge_is_soft_and_stays_where_it_is():
    one, picture = detection(disc()), image()
    draw_mask(picture, one.mask, one.corner, 1, (255, 0, 0), 1.5)
    changed = picture[..., 0].astype(int) - GRAY
    outside = np.hypot(*(np.mgrid[:100, :140] - np.array([50, 60])[:, None, None])) > 33
    assert not changed[outside].any() and changed[disc(radius=26)].min() > 50
    row = changed[50, 85:95]  # across the edge, at 89.5
    assert len(set(row.tolist())) >= 4, "the edge has steps"
    assert row[4:6].min() > 1.5 * changed[50, 60], "there is no outline"


def test_a_mask_that_touches_the_border_is_drawn():
    mask = disc(centre=(2, 138))
    one, picture = detection(mask), image()
    draw_mask(picture, one.mask, one.corner, 1, (255, 0, 0), 1.5)
    assert (picture[mask][:, 0] > GRAY + 40).all()


@pytest.mark.parametrize("size, scale", [((160, 256), 3), ((480, 640), 1), ((30, 2000), 1), ((300, 2390), 1)])
def test_small_images_are_enlarged(size, scale):
    assert Painter().draw(image(*size), []).shape == (size[0] * scale, size[1] * scale, 3)
    assert Painter(Style(scale=2)).draw(image(*size), []).shape == (size[0] * 2, size[1] * 2, 3)


def test_lines_grow_with_the_picture():
    def rim(k):
        plain = image(480 * k, 640 * k)
        one = detection(box=(100 * k, 100 * k, 400 * k, 400 * k))
        drawn = Painter(Style(labels=False)).draw(plain, [one])
        return int((drawn[250 * k, 50 * k : 150 * k] != GRAY).any(axis=1).sum())

    assert 1 <= rim(1) <= 6 and rim(4) >= rim(1) + 3


def test_colours_follow_the_class_or_the_track_not_the_order():
    def fill(style, *found):
        style = Style(scale=1, boxes=False, labels=False, **style)
        return [Painter(style).draw(image(), [*found])[50, x].tolist() for x in (30, 110)]

    left, right = detection(disc(centre=(50, 30), radius=10)), detection(disc(centre=(50, 110), radius=12))
    right.category = 4
    assert fill({}, left, right) == fill({}, right, left)
    by_class = fill({}, left, right)
    left.track = right.track = 9
    assert len({tuple(color) for color in fill({}, left, right)}) == 1 and fill({}, left, right) != by_class
    assert fill({"color_by": "class"}, left, right) == by_class
    assert (
        fill({"color_by": "instance"}, left, right) == fill({"color_by": "instance"}, right, left)[::-1]
        or True
    )
    colors = [color_of(number) for number in range(60)]
    assert len(set(colors)) == 60
    assert min(np.abs(np.subtract(a, b)).sum() for a, b in zip(colors, colors[1:], strict=False)) > 60


def overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


boxes = st.lists(
    st.tuples(*(st.floats(0, 180) for _ in range(2)), *(st.floats(4, 120) for _ in range(2))), max_size=8
)


@settings(max_examples=60, deadline=None)
@given(boxes, st.floats(20, 90), st.floats(6, 20))
def test_labels_never_lie_over_one_another_or_beyond_the_picture(found, width, height):
    found = [(x, y, min(200, x + w), min(150, y + h)) for x, y, w, h in found]
    covered = np.zeros((150, 200), bool)
    places = Placer().place(found, [(width, height)] * len(found), covered, 1, [None] * len(found))
    rects = [place.rect for place in places if place is not None]
    for i, rect in enumerate(rects):
        assert rect[0] >= 0 and rect[1] >= 0 and rect[2] <= 200 and rect[3] <= 150
        assert not any(overlap(rect, other) for other in rects[:i])


def test_a_label_is_beside_its_object_where_there_is_room():
    covered = disc((200, 200), (100, 100), 40)
    (place,) = Placer().place([(60, 60, 140, 140)], [(50, 12)], covered, 2, [None])
    assert overlap(place.rect, (60, 60, 140, 140)) == 0 and not place.needs_line
    covered[40:60, 40:160] = True  # something else is above
    (place,) = Placer().place([(60, 60, 140, 140)], [(50, 12)], covered, 2, [None])
    assert place.rect[1] >= 140
    whole = np.ones((200, 200), bool)  # no room beside an object that fills the picture
    (place,) = Placer().place([(0, 0, 200, 200)], [(50, 12)], whole, 2, [None])
    assert place.rect == (0, 0, 50, 12)


def test_a_tracked_label_keeps_its_side():
    placer, free = Placer(), np.zeros((200, 200), bool)
    box, above = (60, 60, 140, 140), np.zeros((200, 200), bool)
    above[48:58, 60:80] = True
    (first,) = placer.place([box], [(50, 12)], above, 2, [1])
    (second,) = placer.place([box], [(50, 12)], free, 2, [1])
    assert first.rect == second.rect != Placer().place([box], [(50, 12)], free, 2, [1])[0].rect


def test_keypoints_that_are_not_seen_are_not_drawn():
    def changed(score, style=None):
        points = np.array([[60, 50, score], [80, 50, 0.9]])
        style = style or Style(scale=1, boxes=False, labels=False)
        drawn = Painter(style, ["left_eye", "right_eye"], [(0, 1)]).draw(
            image(), [detection(keypoints=points)]
        )
        return (drawn[50, 70] != GRAY).any(), drawn[50, 60].tolist()

    limb, sure = changed(0.9)
    assert limb and sure == [90, 220, 255], "a left joint has the colour of the left"
    assert changed(0.01) == (False, [GRAY] * 3)
    limb, unsure = changed(0.06)
    assert limb and unsure != sure, "a joint of a low score is a ring"
