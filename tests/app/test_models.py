"""What the app's model gives is what the package's prediction gives, to any number of callers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.structures import Boxes, Instances

from mrcnn_ext.app import models as app_models
from mrcnn_ext.app.agreement import agreement
from mrcnn_ext.app.inputs import Picture, sample_scene
from mrcnn_ext.app.models import ShownModel
from mrcnn_ext.app.results import png
from mrcnn_ext.benchmark.stages import STAGES
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.inference import load_predictor, predictions


@pytest.fixture(scope="module")
def scene():
    return sample_scene(3)


def test_it_predicts_what_predictions_gives(models, scene, tmp_path):
    file = tmp_path / "scene.png"
    file.write_bytes(scene.data)
    [(_, expected)] = predictions(load_predictor(weights=models[0].path), [str(file)])
    found = models[0].predict(scene).instances
    assert len(found) == len(expected) > 0
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_keypoints, expected.pred_keypoints)
    assert np.array_equal(np.asarray(found.pred_masks), np.asarray(expected.pred_masks))
    assert found.number.tolist() == list(range(len(found)))


def test_several_callers_get_their_own(models):
    scenes = [sample_scene(i) for i in range(4)]
    alone = [models[0].predict(scene).instances for scene in scenes]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda scene: models[0].predict(scene).instances, scenes * 2))
    for expected, found in zip(alone * 2, together, strict=True):
        assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
        assert torch.equal(found.scores, expected.scores)


def test_the_pyramid_is_what_the_heads_pool_from(models, scene):
    model = models[0]
    assert list(model.heads) == ["box head", "mask head", "keypoint head"]
    pyramid = model.pyramid(scene, "mask head")
    assert pyramid.names == ("p2", "p3", "p4", "p5") and pyramid.options.bins == (14, 14)
    assert [feature.shape[2] for feature in pyramid.maps] == [40, 20, 10, 5]
    caught = []
    hook = model.accelerated.roi_heads.mask_pooler.register_forward_hook(
        lambda _, inputs, output: caught.append((inputs, output))
    )
    model.predict(scene)
    hook.remove()
    (maps, boxes), output = caught[0]
    for ours, theirs in zip(pyramid.maps, maps, strict=True):
        assert torch.equal(ours, theirs.float())
    from mrcnn_ext.app.roi_view import pooled

    ours = torch.cat([pooled(pyramid, box[None], "RoIAlign") for box in boxes[0].tensor])
    torch.testing.assert_close(ours, output.float(), rtol=0.02, atol=0.02)  # its output may be bf16


def test_feature_maps_of_few_pictures_are_kept(models, scene):
    first = models[0].pyramid(scene, "box head").maps[0]
    assert models[0].pyramid(scene, "mask head").maps[0] is first
    for i in range(10, 13):
        models[0].pyramid(sample_scene(i), "box head")
    assert models[0].pyramid(scene, "box head").maps[0] is not first


def test_latency_has_every_stage(models, scene):
    for accelerated in (False, True):
        times = models[0].latency(scene, accelerated)
        assert set(times) == {*STAGES, "runs"}
        assert all(times[stage] > 0 for stage in STAGES) and times["runs"] >= 1


def test_what_the_page_says_of_the_model(models):
    model = models[0]
    assert model.classes[:3] == ["person", "rider", "car"] and len(model.classes) == 8
    assert model.has_masks and model.has_keypoints and len(model.names.lines) == 17
    assert model.min_score == pytest.approx(0.05) and model.keypoint_box_scale == 1


def test_an_image_too_thin_for_the_model_is_refused(models):
    thin = Picture("thin.png", png(np.zeros((2, 3000, 3), np.uint8)))
    with pytest.raises(UserError, match="2 x 3000"):
        models[0].predict(thin)


def test_a_checkpoint_without_config_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "old.pth")
    with pytest.raises(UserError, match="does not hold its config"):
        ShownModel(tmp_path / "old.pth")


def objects(boxes, classes):
    count = len(boxes)
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4).float()))
    found.pred_classes = torch.tensor(classes).long()
    found.scores = torch.linspace(0.9, 0.5, count) if count else torch.zeros(0)
    return found


def test_agreement_pairs_each_object_once():
    first = objects([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [20, 20, 30, 30]], [0, 0, 1, 2])
    second = objects([[50, 50, 60, 60], [0, 0, 10, 10], [20, 20, 30, 30]], [1, 0, 1])
    same = agreement(first, second)
    assert [(i, j) for i, j, _ in same.both] == [(0, 1), (2, 0)]
    assert same.both[0][2] == pytest.approx(1)
    assert same.only_first == [1, 3] and same.only_second == [2]  # the class of the last differs
    assert agreement(first, objects([], [])).only_first == [0, 1, 2, 3]
    assert agreement(objects([], []), second).only_second == [0, 1, 2]


def test_int8_is_taken_where_the_config_says_so(checkpoints, tmp_path, monkeypatch):
    calibration = tmp_path / "int8.json"
    calibration.write_text("{}")
    loaded = app_models.load_predictor(weights=str(checkpoints[0]))
    given = []
    monkeypatch.setattr(app_models, "load_predictor", lambda *_: replace(loaded, int8=str(calibration)))
    monkeypatch.setattr(
        app_models, "accelerate", lambda model, **options: given.append(options["int8"]) or model
    )
    ShownModel(checkpoints[0])
    assert given == [str(calibration)]
