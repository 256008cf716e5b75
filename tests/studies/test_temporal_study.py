"""The study of temporal heads: how a head is trained and tried on tracks, and what is measured and told."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec

from mrcnn_ext.modeling import ConvLSTMKeypointHead, HeatmapKeypointHead
from mrcnn_ext.scenes import get_clip_preset
from mrcnn_ext.studies.temporal import (
    StudySize,
    detector,
    history_table,
    plot_history,
    run_study,
    study,
    study_table,
)
from mrcnn_ext.studies.temporal.features import Tracks, pooled_tracks
from mrcnn_ext.studies.temporal.heads import heatmaps_of, train_head
from mrcnn_ext.studies.temporal.people import noisy, read_pixels
from mrcnn_ext.studies.temporal.scores import score

pytestmark = pytest.mark.detectron2

SIGMAS = [0.05] * 3
SHAPE = ShapeSpec(channels=4, height=14, width=14)


@pytest.fixture
def data():
    """Three people in four frames, in no order, with one keypoint each that is not seen and one that is hidden."""
    torch.manual_seed(0)
    N = 12
    frames, tracks = torch.arange(N) % 4, torch.arange(N) // 4
    order = torch.randperm(N)
    boxes = torch.tensor([[10.0, 10, 60, 90]]).repeat(N, 1) + 3 * frames[:, None]
    points = torch.rand(N, 3, 2) * 35 + 22  # in all boxes
    keypoints = torch.cat([points, torch.tensor([2.0, 1, 0])[None, :, None].repeat(N, 1, 1)], dim=2)
    fields = (
        torch.randn(N, 4, 14, 14).half(),
        boxes,
        keypoints,
        frames,
        tracks,
        frames + 1,
        torch.arange(N) + 1,
    )
    return Tracks(*(field[order] for field in fields))


def lstm():
    torch.manual_seed(0)
    head = ConvLSTMKeypointHead(SHAPE, num_keypoints=3, conv_dims=[8], hidden_channels=4)
    torch.nn.init.normal_(head.network.merge.weight)
    return head


def test_tracks_are_in_the_order_of_their_frames(data, tmp_path):
    data.save(tmp_path / "tracks.pt")
    for rows in Tracks.load(tmp_path / "tracks.pt").by_track():
        assert data.frames[rows].tolist() == [0, 1, 2, 3] and len(set(data.tracks[rows].tolist())) == 1


def test_a_head_sees_as_many_frames_as_it_is_given(data):
    head = lstm().eval()
    single, whole = heatmaps_of(head, data, 1), heatmaps_of(head, data)
    with torch.no_grad():
        torch.testing.assert_close(single, head.layers(data.features.float()))
    last = [rows[-1] for rows in data.by_track()]
    first = [rows[0] for rows in data.by_track()]
    torch.testing.assert_close(heatmaps_of(head, data, 4, last)[last], whole[last])
    torch.testing.assert_close(whole[first], single[first])
    two = heatmaps_of(head, data, 2, last)
    assert (two[last] - whole[last]).abs().max() > 1e-4 and (two[last] - single[last]).abs().max() > 1e-3
    assert not two[first].any()


@pytest.mark.parametrize("in_time", [True, False])
def test_training_improves_a_head_and_is_the_same_for_a_seed(data, in_time):
    results = []
    for updates in (1, 40, 40):
        torch.manual_seed(0)
        head = lstm() if in_time else HeatmapKeypointHead(SHAPE, num_keypoints=3, conv_dims=[8])
        options = {"updates": updates, "people": 3, "num_frames": 4, "learning_rate": 0.02, "seed": 0}
        train_head(head, data, in_time=in_time, **options)
        maps = heatmaps_of(head, data, 0 if in_time else 1).flatten(2).log_softmax(2)
        start, sides = data.boxes[:, None, :2], (data.boxes[:, 2:] - data.boxes[:, :2])[:, None]
        cells = ((data.keypoints[..., :2] - start) / sides * 56).long().clamp(0, 55)
        places = cells[..., 1] * 56 + cells[..., 0]
        results.append(maps.gather(2, places[..., None])[:, :2].mean().item())
    assert results[1] == results[2] > results[0] + 0.1


def test_scores_tell_occluded_joints_from_seen_ones(data):
    """Who finds what is seen and misses what is hidden."""
    content = {"categories": [{"id": 1, "name": "person", "keypoints": ["a", "b", "c"]}]}
    content["images"] = [
        {"id": i, "height": 100, "width": 100, "video_id": 1, "frame_index": i} for i in range(1, 5)
    ]
    content["annotations"] = []
    heatmaps = torch.zeros(len(data), 3, 56, 56)
    for row in range(len(data)):
        x0, y0, x1, y1 = data.boxes[row].tolist()
        points = data.keypoints[row].clone()
        points[:, :2] -= 0.5
        content["annotations"].append(
            {
                **{"id": int(data.annotations[row]), "image_id": int(data.images[row]), "category_id": 1},
                **{"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0},
                **{
                    "keypoints": points.flatten().tolist(),
                    "num_keypoints": 2,
                    "track_id": int(data.tracks[row]),
                },
            }
        )
        cells = (
            (data.keypoints[row, :, :2] - data.boxes[row, :2])
            / (data.boxes[row, 2:] - data.boxes[row, :2])
            * 56
        )
        heatmaps[row, 0, int(cells[0, 1]), int(cells[0, 0])] = 30
        heatmaps[row, 1, int(cells[1, 1] + 28) % 56, int(cells[1, 0])] = 30
    found = score(content, data, heatmaps, SIGMAS, 1.0)
    assert found["AP seen"] > 90 and found["AP occluded"] == 0 and found["AP"] < 20
    assert found["PCK@0.05-seen"] == 100 and found["PCK@0.05-occluded"] == 0 and found["jitter"] > 0
    late = [row for rows in data.by_track() for row in rows[2:]]
    assert score(content, data, heatmaps, SIGMAS, 1.0, late)["AP seen"] > 90


def test_the_report_has_means_and_differences(tmp_path):
    def result(ap, counts):
        metrics = {"AP": ap, "AP seen": ap, "AP occluded": ap / 2, "PCK@0.2": 90.0, "PCK@0.05": 50.0}
        metrics |= {"PCK@0.05-occluded": 20.0, "jitter": 3.0}
        return {
            "all": metrics,
            "history": {str(n): {**metrics, "AP": ap + n} for n in counts},
            "parameters": 5000,
        }

    results = {
        "single": {"0": result(50.0, [1]), "1": result(52.0, [1])},
        "lstm": {"0": result(54.0, [1, 2]), "1": result(58.0, [1, 2])},
    }
    table = study_table(results)
    assert "| ConvLSTMKeypointHead | 2 | 56.0 ± 2.8 |" in table
    assert "| ConvLSTMKeypointHead, more than single frames | 2 | +5.0 ± 1.4 |" in table
    assert history_table(results).endswith("| ConvLSTMKeypointHead | 57.0 ± 2.8 | 58.0 ± 2.8 |")
    plot_history(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


@pytest.fixture
def small_clips(monkeypatch, tmp_path):
    """Clips as the study's, few and small; the folder of a study and its size."""
    preset = get_clip_preset("hard", height=96, width=96, frames=3)
    monkeypatch.setattr(study, "_PRESET", preset)
    options = {"iterations": 2, "batch": 3, "updates": 2, "people": 2, "histories": (1, 2)}
    size = StudySize(num_detector=4, num_train=2, num_val=2, **options)
    yield tmp_path / "study", size
    for name in list(DatasetCatalog):
        if name.startswith("temporal_study"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_people_are_mirrored_with_their_pixels(small_clips):
    output, size = small_clips
    study._detector_config(output, size, "cpu", 1)
    people = study._people("temporal_study_person_train", mirrored=True)
    half = len(people) // 2
    for one, other in zip(people[:half], people[half:], strict=True):
        assert one.image is other.image and other.mirrored and not one.mirrored
        torch.testing.assert_close(other.boxes[:, 0], 96 - one.boxes[:, 2])
        nose, left, right = 0, 5, 6  # shoulders
        for here, there in ((nose, nose), (left, right), (right, left)):
            torch.testing.assert_close(other.keypoints[:, there, 0], 96 - one.keypoints[:, here, 0])
            torch.testing.assert_close(other.keypoints[:, there, 1:], one.keypoints[:, here, 1:])
        assert not set(one.tracks.tolist()) & set(other.tracks.tolist())
    torch.manual_seed(0)
    pooled = PooledPixels()
    tracks = pooled_tracks(pooled, people, seed=0, batch=4)
    assert len(tracks) == sum(len(one.boxes) for one in people)
    for one in pooled.seen:
        assert any(torch.equal(one, read_pixels(p.image["file_name"])) for p in people[:half]) != any(
            torch.equal(one, read_pixels(p.image["file_name"]).flip(2)) for p in people[:half]
        )
    again = pooled_tracks(PooledPixels(), people, seed=0, batch=5)
    assert torch.equal(tracks.boxes, again.boxes) and torch.equal(tracks.annotations, again.annotations)


def test_copies_of_people_are_in_boxes_of_their_own(small_clips):
    output, size = small_clips
    study._detector_config(output, size, "cpu", 1)
    people = study._people("temporal_study_person_train", mirrored=True)
    once = pooled_tracks(PooledPixels(), people, seed=0)
    tracks = pooled_tracks(PooledPixels(), people, seed=0, copies=2, batch=4)
    assert len(tracks) == 2 * len(once) == len(tracks.features) == len(tracks.boxes)
    assert sorted(map(len, tracks.by_track())) == sorted(2 * list(map(len, once.by_track())))
    for annotation in once.annotations.unique().tolist():
        rows = (tracks.annotations == annotation).nonzero()[:, 0]
        assert len(tracks.tracks[rows].unique()) == len(rows) == 4  # mirrored ones too
        assert len(tracks.boxes[rows].unique(dim=0)) == 4
        assert len(tracks.keypoints[rows].unique(dim=0)) == 2
        assert len(tracks.frames[rows].unique()) == len(tracks.images[rows].unique()) == 1


class PooledPixels(torch.nn.Module):
    """A detector as far as `pooled_tracks` needs it; keeps the images that it is given."""

    def __init__(self):
        super().__init__()
        self.device, self.seen = torch.device("cpu"), []
        self.roi_heads = SimpleNamespace(
            keypoint_box_scale=1.25,
            keypoint_in_features=["p2"],
            keypoint_pooler=lambda maps, boxes: torch.zeros(sum(len(one) for one in boxes), 3, 14, 14),
        )

    def preprocess_image(self, inputs):
        self.seen += [one["image"] for one in inputs]
        return SimpleNamespace(tensor=torch.stack([one["image"] for one in inputs]).float())

    def backbone(self, x):
        return {"p2": x}


def test_frames_of_the_detector_move_with_their_people(small_clips):
    """A white dot at each person's first keypoint is where the moved keypoint says."""
    output, size = small_clips
    study._detector_config(output, size, "cpu", 1)
    people = [
        one
        for one in study._people("temporal_study_person_train", mirrored=True)
        if one.keypoints[0, 0, 2] > 0
    ]
    frames = detector._Frames(people, torch.device("cpu"))
    frames.pixels.zero_()
    for one in people:
        x, y = one.keypoints[0, 0, :2].tolist()
        x = 96 - x if one.mirrored else x
        frames.pixels[frames.rows[one.image["file_name"]], :, int(y), int(x)] = 255
    model = SimpleNamespace(pixel_mean=torch.zeros(3, 1, 1), pixel_std=torch.ones(3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    scales = []
    for _ in range(3):
        batch = frames.batch(model, list(range(len(people))), generator)
        for image, one, instances, before in zip(
            batch.images.tensor, batch.people, batch.instances, people, strict=True
        ):
            y, x = divmod(int(image.sum(0).argmax()), 96)
            torch.testing.assert_close(
                torch.tensor([x + 0.5, y + 0.5]), one.keypoints[0, 0, :2], rtol=0, atol=1.01
            )
            assert torch.equal(instances.gt_keypoints.tensor, one.keypoints)
            scale = (one.boxes[0, 2] - one.boxes[0, 0]) / (before.boxes[0, 2] - before.boxes[0, 0])
            assert 0.7 - 1e-4 <= scale <= 1 + 1e-4 and 0 <= one.boxes.min() and one.boxes.max() <= 96 + 1e-3
            scales.append(float(scale))
    assert min(scales) < 0.85 and max(scales) > 0.999


def test_noisy_boxes_stay_near(data):
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor([[10.0, 20, 50, 100]]).repeat(2000, 1)
    found = noisy(boxes, generator)
    centres, sides = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
    torch.testing.assert_close(centres.mean(0), torch.tensor([30.0, 60]), rtol=0, atol=0.3)
    torch.testing.assert_close(centres.std(0), 0.05 * torch.tensor([40.0, 80]), rtol=0.1, atol=0)
    torch.testing.assert_close(sides.log().std(0), torch.tensor([0.08, 0.08]), rtol=0.1, atol=0)


def test_a_study_in_processes_goes_on_where_it_was(small_clips):
    """From nothing to results of two heads, the second one in another call."""
    output, size = small_clips
    first = run_study(output, size, ["single"], [0])
    assert set(first) == {"single"} and set(first["single"]) == {"0"}
    before = (output / "heads" / "single_0.json").stat().st_mtime_ns
    results = run_study(output, size, ["single", "lstm", "unipose"], [0], processes=2)
    assert (output / "heads" / "single_0.json").stat().st_mtime_ns == before
    assert set(results) == {"single", "lstm", "unipose"}
    assert set(results["lstm"]["0"]["history"]) == {"1", "2"} and results["lstm"]["0"]["parameters"] > 0
    assert len(list((output / "detector_clips" / "frames" / "train").glob("*/*.jpg"))) == 4
    detector = torch.load(output / "detector" / "model_final.pth", weights_only=True)["model"]
    assert all(value.isfinite().all() for value in detector.values() if value.is_floating_point())


def test_what_was_made_with_other_arguments_is_made_again(small_clips, monkeypatch):
    output, size = small_clips
    paths = [
        output / "detector" / "model_final.pth",
        output / "features_val.pt",
        output / "heads" / "single_0.pth",
    ]

    def changed():
        before = [path.stat().st_mtime_ns for path in paths]
        results = run_study(output, size, ["single"], [0])
        return [path.stat().st_mtime_ns != time for path, time in zip(paths, before, strict=True)], results

    run_study(output, size, ["single", "lstm"], [0])
    assert changed()[0] == [False, False, False]
    monkeypatch.setattr(study, "_COPIES", 1)
    again, results = changed()
    assert again == [False, True, True] and set(results) == {"single"}, "lstm is of other features"
    monkeypatch.setattr(study, "_LEARNING_RATE", 1e-3)
    assert changed()[0] == [True, True, True]
    assert not list(output.rglob("*.tmp")) and not list(output.rglob("*.part"))


def test_a_folder_is_of_one_size(tmp_path):
    (tmp_path / "size.json").write_text('{"num_train": 7}')
    with pytest.raises(ValueError, match="num_train 7, now 220, .*: give another folder"):
        run_study(tmp_path, StudySize(), [], [0])
