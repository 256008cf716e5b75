"""The scenes themselves: what is drawn, and what is said about it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mrcnn_ext.scenes import CATEGORY_NAMES, KEYPOINT_NAMES, generate_scene, get_preset
from mrcnn_ext.scenes.masks import encode_rle, mask_to_closed_outline, mask_to_polygons

mask_util = pytest.importorskip("pycocotools.mask")


@pytest.fixture(scope="module")
def easy_scenes():
    preset = get_preset("easy")
    return [generate_scene(preset, 0, index) for index in range(60)]


@pytest.fixture(scope="module")
def street_scenes():
    preset = get_preset("street", height=256, width=512)
    return [generate_scene(preset, 0, index) for index in range(50)]


def test_a_scene_depends_on_its_arguments_alone():
    preset = get_preset("easy")
    first = generate_scene(preset, 5, 3)
    generate_scene(preset, 9, 9)
    np.random.seed(1)
    again = generate_scene(preset, 5, 3)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.instance_map, again.instance_map)
    for other in (generate_scene(preset, 6, 3), generate_scene(preset, 5, 4)):
        assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("name", ["easy", "street"])
def test_shapes_and_numbers_agree(name, request):
    for scene in request.getfixturevalue(f"{name}_scenes"):
        h, w = scene.labels.shape
        assert scene.image.shape == (h, w, 3) and scene.image.dtype == np.uint8
        assert scene.instance_map.shape == (h, w) and scene.instance_map.dtype == np.uint16
        assert scene.instance_map.max(initial=0) <= len(scene.instances)
        for index, instance in enumerate(scene.instances):
            mask = scene.mask(index)
            ys, xs = np.nonzero(mask)
            assert instance.area == mask.sum() >= 8
            assert instance.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert 0 < instance.visible <= 1
        depths = [i.depth for i in scene.instances]
        assert depths == sorted(depths, reverse=True)


def test_every_category_in_both_presets(easy_scenes, street_scenes):
    for scenes in (easy_scenes, street_scenes):
        found = [i.category for s in scenes for i in s.instances if not i.iscrowd]
        assert set(found) == set(CATEGORY_NAMES)
        assert 0.2 < found.count("person") / len(found) < 0.5


def test_street_has_small_large_hidden_cut_crowded_and_none(street_scenes):
    instances = [i for s in street_scenes for i in s.instances]
    single = [i for i in instances if not i.iscrowd]
    sides = [max(i.box[2] - i.box[0], i.box[3] - i.box[1]) for i in single]
    assert min(sides) <= 10
    assert max(i.box[2] - i.box[0] for i in single) > 300 or max(i.box[3] - i.box[1] for i in single) > 200
    assert any(i.iscrowd for i in instances)
    assert any(i.visible < 0.5 for i in single)
    assert any(i.box[0] == 0 or i.box[2] == 512 for i in single)
    assert any(not s.instances for s in street_scenes)


def test_easy_is_easy(easy_scenes):
    single = [i for s in easy_scenes for i in s.instances if not i.iscrowd]
    assert np.mean([i.visible > 0.9 for i in single]) > 0.8
    assert np.median([i.area for i in single]) > 500
    assert 2 < len(single) / len(easy_scenes) < 6


def test_light_varies(street_scenes):
    brightness = [s.image.mean() for s in street_scenes]
    assert min(brightness) < 70 < 110 < max(brightness)


def test_keypoints_are_on_figures_only(easy_scenes, street_scenes):
    for scene in easy_scenes + street_scenes:
        for instance in scene.instances:
            figure = instance.category in ("person", "rider") and not instance.iscrowd
            assert (instance.keypoints is not None) == figure


def test_visible_keypoints_lie_on_their_figure(easy_scenes, street_scenes):
    for scene in easy_scenes + street_scenes:
        h, w = scene.labels.shape
        for index, instance in enumerate(scene.instances):
            if instance.keypoints is None:
                continue
            assert instance.keypoints.shape == (17, 3)
            mask = scene.mask(index)
            for x, y, v in instance.keypoints:
                assert v in (0, 1, 2)
                if v == 0:
                    assert x == y == 0
                    continue
                assert 0 <= x < w and 0 <= y < h
                if v == 2:
                    y0, x0 = max(int(y) - 1, 0), max(int(x) - 1, 0)
                    assert mask[y0 : int(y) + 2, x0 : int(x) + 2].any()


def test_all_visibilities_occur_and_faces_turn(street_scenes):
    keypoints = np.stack([i.keypoints for s in street_scenes for i in s.instances if i.keypoints is not None])
    assert {0, 1, 2} <= set(np.unique(keypoints[:, :, 2]).astype(int))
    nose = keypoints[:, KEYPOINT_NAMES.index("nose"), 2]
    assert (nose == 2).any() and (nose == 1).any()
    left, right = (KEYPOINT_NAMES.index(f"{side}_shoulder") for side in ("left", "right"))
    seen = (keypoints[:, [left, right], 2] == 2).all(1)
    to_camera = keypoints[seen, left, 0] > keypoints[seen, right, 0]
    # Front views have the left shoulder on the right; back views the other way round.
    assert 0.2 < to_camera.mean() < 0.8
    nose_seen = nose[seen] == 2
    assert nose_seen[to_camera].mean() > 0.7 and nose_seen[~to_camera].mean() < 0.3


def test_heads_are_above_hips_above_ankles(easy_scenes):
    index = {name: k for k, name in enumerate(KEYPOINT_NAMES)}
    for scene in easy_scenes:
        for instance in scene.instances:
            if instance.keypoints is not None and (instance.keypoints[:, 2] > 0).all():
                y = instance.keypoints[:, 1]
                assert y[index["nose"]] < y[index["left_hip"]] < y[index["left_ankle"]]


def test_riders_sit_on_their_vehicle(easy_scenes):
    pairs = 0
    for scene in easy_scenes:
        for rider in scene.instances:
            if rider.category != "rider":
                continue
            vehicles = [
                i
                for i in scene.instances
                if i.category in ("bicycle", "motorcycle") and i.depth == rider.depth
            ]
            for vehicle in vehicles:
                pairs += 1
                assert vehicle.box[0] < (rider.box[0] + rider.box[2]) / 2 < vehicle.box[2]
                assert rider.box[1] < vehicle.box[1] < rider.box[3]
    assert pairs > 5


def iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def decode(polygons, shape):
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects(polygons, *shape))).astype(bool)


def test_polygons_give_the_mask_back(street_scenes):
    ious, multi = [], 0
    for scene in street_scenes[:25]:
        for index, instance in enumerate(scene.instances):
            mask = scene.mask(index)
            x0, y0, x1, y1 = instance.box
            polygons = mask_to_polygons(mask[y0:y1, x0:x1], (x0, y0))
            multi += len(polygons) > 1
            assert all(len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
            ious.append(iou(decode(polygons, mask.shape), mask))
    assert np.mean(ious) > 0.96 and min(ious) > 0.75
    assert multi > 10


def test_polygons_keep_holes_open():
    mask = np.zeros((40, 50), bool)
    mask[5:35, 5:45] = True
    mask[12:28, 15:30] = False
    polygons = mask_to_polygons(mask)
    assert np.array_equal(decode(polygons, mask.shape), mask)


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (2, 2), (1, 8)])
def test_polygons_of_thin_masks(shape):
    mask = np.zeros((20, 20), bool)
    mask[3 : 3 + shape[0], 4 : 4 + shape[1]] = True
    assert np.array_equal(decode(mask_to_polygons(mask), mask.shape), mask)


def test_closed_outline_joins_pieces_and_is_drawn_by_pillow():
    image = pytest.importorskip("PIL.Image")
    draw = pytest.importorskip("PIL.ImageDraw")
    mask = np.zeros((40, 60), bool)
    mask[5:35, 5:20] = mask[10:30, 40:55] = True
    outline = mask_to_closed_outline(mask)
    canvas = image.new("L", (60, 40))
    draw.Draw(canvas).polygon([tuple(p) for p in outline], fill=1)
    drawn = np.array(canvas) > 0
    assert drawn[mask].all()
    assert iou(drawn, mask) > 0.9  # a thin bridge is all that was added
    assert len(mask_to_closed_outline(np.ones((1, 3), bool))) >= 3


def test_rle_is_json_ready():
    mask = np.zeros((6, 7), bool)
    mask[2:4, 1:5] = True
    rle = encode_rle(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == [6, 7]
    assert np.array_equal(mask_util.decode(rle).astype(bool), mask)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: get_preset("hard"), "unknown preset 'hard'; presets: street, easy"),
        (lambda: get_preset("easy", colour=1), r"unknown preset fields \['colour'\]"),
        (lambda: get_preset("easy", height=8), "height must be at least 32 pixels, got 8"),
        (lambda: get_preset("easy", actors=(5, 2)), "actors must be"),
        (lambda: get_preset("easy", weights={"tram": 1.0}), r"unknown actors \['tram'\]"),
        (lambda: get_preset("easy", size=(400, 0.5)), "size must be"),
        (lambda: get_preset("easy", weights={"person": 0.0}), "weights must be frequencies"),
        (lambda: get_preset("easy", weights={"person": 2.0, "car": -1.0}), "weights must be frequencies"),
        (lambda: get_preset("easy", min_area=0), "min_area must be at least 1 pixel, got 0"),
        (lambda: get_preset("easy", night=0.7, dusk=0.6), "night and dusk are fractions"),
    ],
)
def test_bad_presets(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_scenes_do_not_need_detectron2_or_torch():
    code = (
        "import sys; sys.modules['detectron2'] = None; sys.modules['torch'] = None\n"
        "from mrcnn_ext.scenes import generate_scene, get_preset\n"
        "print(generate_scene(get_preset('easy'), 0, 0).image.shape)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "(160, 256, 3)", done.stderr
