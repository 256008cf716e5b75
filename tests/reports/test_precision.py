"""Average precisions, and which detections are right, as pycocotools sees them."""

import numpy as np
import pytest

from mrcnn_ext.reports import evaluate_tasks

CAT, DOG = 7, 8


def test_boxes_by_hand(annotation, found, truth):
    objects = [annotation(k, CAT, (10, 10, 40, 40)) for k in (1, 2)]
    objects.append(annotation(3, CAT, (10, 10, 40, 40), iscrowd=1))
    records = [
        found(1, CAT, (10, 10, 40, 40), 0.9),
        found(1, CAT, (10, 10, 40, 36), 0.8),  # a duplicate
        found(2, CAT, (10, 10, 40, 28), 0.7),  # IoU 0.7
        found(3, CAT, (12, 12, 9, 9), 0.6),  # in the crowd: counts as nothing
        found(3, DOG, (12, 12, 9, 9), 0.5),
    ]
    result = evaluate_tasks(truth(objects), records)["bbox"]
    (cat,) = result.classes
    assert (cat.name, cat.num_objects, result.num_objects) == ("cat", 2, 2)
    # Half of the recall at precision 1, the rest at 2/3 up to IoU 0.7, then not at all: 51 and 50 of 101 points.
    full, half = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert cat.ap50 == pytest.approx(full) and cat.ap75 == pytest.approx(half)
    # 0.7 in floating point is below the threshold 0.7 or not, as pycocotools decides; both are near.
    assert cat.ap == pytest.approx((4 * full + 6 * half) / 10, abs=0.04)
    assert result.summary["AP"] == pytest.approx(cat.ap) and result.summary["AP50"] == pytest.approx(full)
    np.testing.assert_allclose(cat.curve[[0, 50, 51, 100]], [1, 1, 2 / 3, 2 / 3])
    np.testing.assert_allclose(result.curves[0.5], cat.curve)
    judged = sorted(zip(result.scores, result.correct, strict=True), reverse=True)
    assert judged == [(0.9, True), (0.8, False), (0.7, True), (0.5, False)]


def test_keypoints_of_classes_without_any_count_for_nothing(annotation, found, truth):
    keypoints = [20, 20, 2, 30, 30, 2]
    objects = [
        annotation(1, CAT, (10, 10, 40, 40), keypoints=keypoints, num_keypoints=2),
        annotation(1, DOG, (60, 10, 30, 30)),
    ]
    records = [
        found(1, CAT, (10, 10, 40, 40), 0.9, keypoints=[20, 20, 1, 30, 30, 1]),
        found(1, DOG, (60, 10, 30, 30), 0.9, keypoints=[1, 1, 1, 2, 2, 1]),
    ]
    results = evaluate_tasks(truth(objects), records, sigmas=[0.1, 0.1])
    assert list(results) == ["bbox", "keypoints"]
    keypoints = results["keypoints"]
    assert keypoints.scores.tolist() == [0.9] and keypoints.correct.tolist() == [True]
    assert [item.name for item in keypoints.classes] == ["cat"] and keypoints.summary["AP"] == pytest.approx(
        1
    )
    assert np.isnan(keypoints.summary["APl"])  # there is no large object
    assert "keypoints" not in evaluate_tasks(truth(objects), records)  # no sigmas


def test_nothing_found(annotation, truth):
    result = evaluate_tasks(truth([annotation(1, CAT, (0, 0, 9, 9))]), [], tasks=["bbox"])["bbox"]
    assert result.summary["AP"] == 0 and len(result.scores) == 0 and result.num_objects == 1
