import math

import numpy as np
import pytest

from mrcnn_ext.reports import keypoint_errors

NAMES = ("nose", "left_eye", "right_eye")


def pair(truth, found, area=100.0):
    return {"keypoints": truth, "area": area}, {"keypoints": found}


def test_errors_by_hand():
    pairs = [
        # The nose is 3-4-5 pixels off, an object of scale 10; the eyes have changed places.
        pair([0, 0, 2, 10, 0, 2, 20, 0, 1], [3, 4, 0.9, 20, 0, 0.9, 10, 0, 0.9]),
        # Scale 20: the nose is 1 pixel off, the left eye right, the right eye not annotated.
        pair([0, 0, 2, 10, 0, 2, 0, 0, 0], [1, 0, 0.9, 10, 0, 0.9, 77, 77, 0.9], area=400.0),
        # Nothing visible: counts for nothing.
        pair([0] * 9, [50] * 9),
    ]
    nose, left, right = keypoint_errors(pairs, NAMES, [0.05, 0.1, 0.1], [("left_eye", "right_eye")])
    assert (nose.name, nose.count, left.count, right.count) == ("nose", 2, 2, 1)
    assert (nose.pixels, left.pixels, right.pixels) == (3, 5, 10)
    np.testing.assert_allclose(nose.relative, np.percentile([0.5, 0.05], [25, 50, 75]))
    expected = [math.exp(-(d**2) / (2 * s**2 * 0.1**2)) for d, s in ((5, 10), (1, 20))]
    assert nose.similarity == pytest.approx(np.mean(expected))
    assert math.isnan(nose.swapped) and (left.swapped, right.swapped) == (1, 1)  # where both are annotated


def test_the_similarities_of_an_object_average_to_its_oks(annotation, found, truth):
    """The same formula as pycocotools'."""
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(10, 50, (3, 2)), [2, 2, 2]])
    wrong = points + np.column_stack([rng.normal(0, 3, (3, 2)), [0, 0, 0]])
    objects = annotation(1, 7, (10, 10, 40, 40), keypoints=points.ravel().tolist(), num_keypoints=3)
    record = found(1, 7, (10, 10, 40, 40), 0.9, keypoints=wrong.ravel().tolist())
    data = truth([objects])
    evaluation = COCOeval(data, data.loadRes([record]), "keypoints")
    evaluation.params.kpt_oks_sigmas = np.array([0.05, 0.1, 0.1])
    evaluation.evaluate()
    errors = keypoint_errors([(objects, record)], NAMES, [0.05, 0.1, 0.1])
    assert np.mean([error.similarity for error in errors]) == pytest.approx(
        float(evaluation.ious[1, 7][0, 0])
    )


def test_without_pairs_and_without_sigmas():
    (error,) = keypoint_errors([], ["nose"])
    assert error.count == 0 and math.isnan(error.pixels) and np.isnan(error.relative).all()
    (error,) = keypoint_errors([pair([0, 0, 2], [1, 0, 1])], ["nose"])
    assert error.pixels == 1 and math.isnan(error.similarity)
