"""Videos by a model whose keypoint head carries a state: in order, in batches, continued, and with its tracks."""

import json

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
pytest.importorskip("scipy")
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from mrcnn_ext.engine import UserError
from mrcnn_ext.inference import RayOptions, load_predictor, pipeline, predict, predictions
from mrcnn_ext.modeling import streaming

pytestmark = pytest.mark.detectron2

QUIET = {"progress": False, "accelerate": False}
KEYS = ("MODEL.ROI_KEYPOINT_HEAD.NAME", "ConvLSTMKeypointHead", "MODEL.ROI_KEYPOINT_HEAD.LSTM_DIM", "4")


@pytest.fixture
def predictor(make_cfg, weights, tmp_path):
    torch.manual_seed(0)
    model = build_model(make_cfg(*KEYS))
    known = torch.load(weights)["model"]
    model.load_state_dict(known, strict=False)
    torch.nn.init.normal_(model.roi_heads.keypoint_head.network.merge.weight)
    path = tmp_path / "temporal.pth"
    torch.save({"model": model.state_dict()}, path)
    return load_predictor(make_cfg(*KEYS, "MODEL.WEIGHTS", str(path)))


@pytest.fixture
def video(tmp_path, scenes):
    """One picture that moves to the right."""
    path = str(tmp_path / "street.avi")
    picture = cv2.imread(DatasetCatalog.get(scenes)[0]["file_name"])
    height, width = picture.shape[:2]
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 8, (width, height))
    for shift in range(5):
        writer.write(np.roll(picture, 2 * shift, axis=1))
    writer.release()
    return path


def keypoints(path):
    records = json.loads(path.read_text())
    return [np.asarray(record["keypoints"]) for record in records], records


def test_frames_go_through_the_head_in_order(predictor, video, tmp_path):
    options = {"accelerate": False, "track_score": 0.2}
    found = list(predictions(predictor, video, **options))
    batches = list(predictions(predictor, video, batch_size=3, **options))
    ids = [instances.track_ids.tolist() for _, instances in found]
    scores = [instances.scores.tolist() for _, instances in found]
    for row, own in zip(ids, scores, strict=True):
        assert [number > 0 for number in row] == [score >= 0.2 for score in own]
    for (_, one), (_, other) in zip(found, batches, strict=True):
        assert one.track_ids.tolist() == other.track_ids.tolist()
        torch.testing.assert_close(one.pred_keypoints, other.pred_keypoints, rtol=1e-3, atol=1e-2)
    alone = list(predictions(predictor, video_frames(video, tmp_path), **options))
    assert not alone[0][1].has("track_ids"), "images are no video"
    differences = [
        (one.pred_keypoints[..., :2] - other.pred_keypoints[..., :2]).abs().max().item()
        for (_, one), (_, other) in zip(found, alone, strict=True)
    ]
    assert differences[0] < 1 < max(differences[1:])


def video_frames(video, tmp_path):
    (tmp_path / "frames").mkdir()
    capture, paths = cv2.VideoCapture(video), []
    while (frame := capture.read())[0]:
        paths.append(tmp_path / "frames" / f"{len(paths)}.png")
        cv2.imwrite(str(paths[-1]), frame[1])
    return paths


def test_results_have_the_tracks_of_the_states_if_asked(predictor, video, tmp_path):
    options = {"picture_score": 0.2, **QUIET}
    predict(predictor, video, tmp_path / "tracks.json", track=True, **options)
    predict(predictor, video, tmp_path / "none.json", **options)
    points, records = keypoints(tmp_path / "tracks.json")
    tracks = [record["track_id"] for record in records]
    assert {record["score"] >= 0.2 for record in records if record["track_id"] is None} <= {False}
    assert len(set(tracks)) < len(tracks), "nothing is followed"
    plain, records = keypoints(tmp_path / "none.json")
    assert not any("track_id" in record for record in records)
    np.testing.assert_array_equal(plain, points)


def test_an_interrupted_video_begins_anew(predictor, video, tmp_path, monkeypatch):
    predict(predictor, video, tmp_path / "whole.json", **QUIET)
    ran, stock = [], pipeline._predict

    def fail(model, samples):
        ran.append(samples[0].index)
        if len(ran) == 4:
            raise OSError("power cut")
        stock(model, samples)

    monkeypatch.setattr(pipeline, "_predict", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        predict(predictor, video, tmp_path / "part.json", **QUIET)
    summary = predict(predictor, video, tmp_path / "part.json", **QUIET)
    assert ran == [0, 1, 2, 3, 0, 1, 2, 3, 4] and summary["continued"] == 0 and summary["images"] == 5
    assert keypoints(tmp_path / "part.json")[1] == keypoints(tmp_path / "whole.json")[1]
    assert predict(predictor, video, tmp_path / "part.json", **QUIET)["continued"] == 5 and len(ran) == 9


def test_a_video_with_a_state_does_not_go_to_ray(predictor, video, tmp_path, monkeypatch):
    """Its frames would reach several copies of the head, and in no order."""
    started = []
    monkeypatch.setattr("mrcnn_ext.inference.run.map_on_actors", lambda *args, **kwargs: started.append(args))
    with pytest.raises(UserError, match="carries a state from frame to frame: .* without Ray .*--ray"):
        predict(predictor, video, tmp_path / "ray.json", ray=RayOptions(actors=2), **QUIET)
    assert not started and not (tmp_path / "ray.json").exists()


def test_memory_does_not_grow_with_the_video(predictor, video):
    """As many states as there are objects in view and just hidden, after many objects."""
    model, head = predictor.model.eval(), predictor.model.roi_heads.keypoint_head
    rng = np.random.default_rng(0)
    counts = []
    with torch.no_grad(), streaming(model, min_score=0.0, one_video=True):
        for _ in range(40):
            image = torch.as_tensor(rng.integers(0, 255, (3, 64, 96)), dtype=torch.float32)
            model([{"image": image}])
            counts.append(len(head.stream))
    assert max(counts) <= 5 * 17
    assert head.stream is None
