"""The study of temporal heads: how a head is trained and tried on tracks, and what is measured and told."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import ShapeSpec

from mrcnn_ext.modeling import ConvLSTMKeypointHead, HeatmapKeypointHead
from mrcnn_ext.studies.temporal import StudySize, history_table, plot_history, run_study, study_table
from mrcnn_ext.studies.temporal.features import Tracks
from mrcnn_ext.studies.temporal.heads import heatmaps_of, train_head
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


def test_a_folder_is_of_one_size(tmp_path):
    (tmp_path / "size.json").write_text('{"num_train": 7}')
    with pytest.raises(ValueError, match="another size .num_train 7, now 100, .*: give another folder"):
        run_study(tmp_path, StudySize(), [], [0])
