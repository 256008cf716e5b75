"""PCK and jitter against plain loops, and poses laid beside the annotated ones."""

import numpy as np
import pytest

from mrcnn_ext.evaluation.coco_metrics import TruthCOCO
from mrcnn_ext.evaluation.jitter import acceleration_errors, jitter
from mrcnn_ext.evaluation.pck import box_sizes, percentage_of_correct_keypoints
from mrcnn_ext.evaluation.pose_tracks import match_poses, pose_metrics

NAMES = ("head", "left_elbow", "right_elbow")


def test_pck_is_what_a_loop_counts():
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (40, 3, 2))
    predicted = truth + rng.normal(0, 8, truth.shape)
    labelled = rng.random((40, 3)) < 0.7
    predicted[3, 1] = np.nan
    labelled[3, 1] = True
    boxes = rng.uniform(20, 90, (40, 4))
    for threshold in (0.05, 0.2):
        pck = percentage_of_correct_keypoints(predicted, truth, labelled, box_sizes(boxes), threshold, NAMES)
        right, count = [0] * 3, [0] * 3
        for n in range(40):
            for k in range(3):
                if labelled[n, k]:
                    count[k] += 1
                    d = np.hypot(*(predicted[n, k] - truth[n, k]))
                    right[k] += d <= threshold * max(boxes[n, 2], boxes[n, 3])
        expected = [100 * r / c for r, c in zip(right, count, strict=True)]
        assert pck.per_joint == pytest.approx(expected) and list(pck.counts) == count
        assert pck.mean == pytest.approx(np.mean(expected))
        assert pck.pooled == pytest.approx(100 * sum(right) / sum(count))
        assert pck.by_part() == {
            "head": pytest.approx(expected[0]),
            "elbow": pytest.approx((expected[1] + expected[2]) / 2),
        }


def test_a_joint_that_nobody_has_is_left_out_of_the_mean():
    truth = np.zeros((2, 2, 2))
    pck = percentage_of_correct_keypoints(truth + 1, truth, [[True, False]] * 2, [10, 4])
    assert pck.per_joint[0] == 50 and np.isnan(pck.per_joint[1]) and pck.mean == 50


@pytest.mark.parametrize(
    "arguments, match",
    [
        (((2, 3, 2), (2, 4, 2), (2, 3), (2,)), r"predicted and truth must both be \(N, K, 2\)"),
        (((2, 3, 2), (2, 3, 2), (2, 4), (2,)), r"labelled must be \(2, 3\) and sizes \(2,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        percentage_of_correct_keypoints(*(np.ones(shape) for shape in arguments))


def test_sizes_and_thresholds_must_be_above_0():
    zeros = np.zeros((1, 1, 2))
    with pytest.raises(ValueError, match="sizes must be above 0 pixels, got 0"):
        percentage_of_correct_keypoints(zeros, zeros, [[True]], [0])
    with pytest.raises(ValueError, match="threshold must be above 0, got 0"):
        percentage_of_correct_keypoints(zeros, zeros, [[True]], [1], 0)


def test_jitter_counts_what_leaps_and_not_what_is_off_or_drifts():
    t = np.arange(6, dtype=np.float64)
    truth = np.stack([3 * t**2, -t], 1)[:, None].repeat(2, 1)
    valid = np.ones((6, 2), bool)
    assert acceleration_errors(truth + 5 + t[:, None, None], truth, valid) == pytest.approx(0)
    leaping = truth.copy()
    leaping[3, 0] += (3, 4)  # 5 pixels away for one frame: 1, -2, 1 times that
    errors = acceleration_errors(leaping, truth, valid)
    assert errors[:, 0] == pytest.approx([0, 5, 10, 5]) and errors[:, 1] == pytest.approx(0)
    assert jitter([(leaping, truth, valid), (truth, truth, valid)]) == pytest.approx(20 / 16)
    valid[4, 0] = False
    assert np.isnan(acceleration_errors(leaping, truth, valid)[1 + 1 :, 0]).all()
    assert np.isnan(jitter([(truth[:2], truth[:2], valid[:2])]))


def person(number, image, x, track, v=(2, 1, 0)):
    points = [value for k in range(3) for value in (x + 10 * k, 20.0, v[k])]
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [x, 0, 40, 30],
        "area": 1200,
        "iscrowd": 0,
        "keypoints": points,
        "num_keypoints": 2,
        "track_id": track,
    }


def truth_of(annotations, frames=(0, 1, 2, 3)):
    images = [
        {"id": k, "file_name": f"{k}.jpg", "height": 99, "width": 300, "video_id": 1, "frame_index": f}
        for k, f in enumerate(frames)
    ]
    category = {"id": 1, "name": "person", "keypoints": list(NAMES)}
    return TruthCOCO({"images": images, "annotations": annotations, "categories": [category]})


def found(annotation, shift=0.0, **other):
    points = np.reshape(annotation["keypoints"], (-1, 3)) + [shift, 0, 0]
    return {
        "image_id": annotation["image_id"],
        "category_id": 1,
        "bbox": annotation["bbox"],
        "score": 0.5,
        "keypoints": points.ravel().tolist(),
        **other,
    }


def test_people_take_the_best_prediction_of_their_box():
    one, two = person(1, 0, 0.0, 7), person(2, 0, 100.0, 8)
    truth = truth_of([one, two])
    far = found(one, bbox=[200, 0, 40, 30])
    poses = match_poses(truth, [found(one, 3.0, score=0.4), found(one, 1.0, score=0.9), far])
    assert list(poses.found) == [True, False]
    assert poses.predicted[0, 0] == pytest.approx([1, 20]) and np.isnan(poses.predicted[1]).all()
    given = match_poses(truth, [found(one, 2.0, annotation_id=2)])
    assert list(given.found) == [False, True], "made for the box of the second"
    with pytest.raises(ValueError, match="annotation_id 9 of a prediction is not in the data"):
        match_poses(truth, [found(one, annotation_id=9)])
    with pytest.raises(ValueError, match="image 0 has 2 keypoints, the people of the data have 3"):
        match_poses(truth, [{**found(one), "keypoints": [0] * 6}])


def test_pose_metrics_of_a_video():
    people = [person(k + 1, k, 5.0 * k, 7) for k in range(4)]
    truth = truth_of(people)
    shifts = (0.0, 5.0, 0.0, 0.0)  # PCK@0.2 allows 8 pixels, PCK@0.1 4
    records = [found(p, s) for p, s in zip(people, shifts, strict=True)]
    metrics = pose_metrics(truth, records, (0.1, 0.2), NAMES)
    assert metrics["PCK@0.2"] == 100 and metrics["PCK@0.1"] == 75
    assert metrics["PCK@0.1-head"] == metrics["PCK@0.1-seen"] == metrics["PCK@0.1-occluded"] == 75
    assert np.isnan(metrics["PCK@0.1-right_elbow"]), "nobody is labelled with it"
    assert metrics["found"] == 100 and metrics["jitter"] == pytest.approx((10 + 5) / 2)
    assert pose_metrics(truth, records[:2], (0.2,), NAMES)["PCK@0.2"] == 50
    # A frame that lies between ends a run: there are no three in a row.
    gap = truth_of(people, (0, 1, 3, 4))
    assert np.isnan(pose_metrics(gap, records)["jitter"])


def test_data_without_people():
    nobody = TruthCOCO(
        {"images": [{"id": 1}], "categories": [{"id": 1, "name": "person"}], "annotations": []}
    )
    found = {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [0, 0, 5, 5], "keypoints": [1, 1, 1] * 3}
    metrics = pose_metrics(nobody, [found], (0.2,), NAMES)
    assert metrics.keys() == {"PCK@0.2", "PCK@0.2-seen", "PCK@0.2-occluded", "found"}
    assert np.isnan(list(metrics.values())).all()
