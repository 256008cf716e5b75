import numpy as np
import pytest

from mrcnn_ext.reports import reliability, threshold_curves


def test_calibration_error_by_hand():
    # Two bins: scores 0.1, 0.3 of which one is right; 0.9, 0.9, 0.6 of which one is.
    diagram = reliability([0.1, 0.3, 0.9, 0.9, 0.6], [False, True, True, False, False], bins=2)
    np.testing.assert_allclose(diagram.edges, [0, 0.5, 1])
    np.testing.assert_allclose(diagram.confidence, [0.2, 0.8])
    np.testing.assert_allclose(diagram.precision, [0.5, 1 / 3])
    np.testing.assert_array_equal(diagram.counts, [2, 3])
    assert diagram.ece == pytest.approx((2 * 0.3 + 3 * (0.8 - 1 / 3)) / 5)


def test_scores_that_keep_their_promise_have_no_error():
    assert reliability([0.75] * 4, [True, True, True, False]).ece == pytest.approx(0)
    assert reliability([1.0, 1.7], [True, True]).ece == 0  # the last bin holds 1 and what is above


def test_empty_bins_and_no_detections():
    diagram = reliability([0.95], [True])
    assert diagram.counts.sum() == 1 and np.isnan(diagram.precision[:9]).all()
    assert np.isnan(reliability([], []).ece)


def test_curves_over_the_threshold_by_hand():
    curves = threshold_curves([0.5, 0.9, 0.7, 0.5], [True, True, False, False], num_objects=4)
    np.testing.assert_allclose(curves.thresholds, [0.9, 0.7, 0.5])  # both of 0.5 at once
    np.testing.assert_allclose(curves.precision, [1, 1 / 2, 2 / 4])
    np.testing.assert_allclose(curves.recall, [1 / 4, 1 / 4, 2 / 4])
    np.testing.assert_allclose(curves.f1, [2 / 5, 2 / 6, 4 / 8])
    assert curves.best == (0.5, 0.5)


def test_curves_of_nothing():
    threshold, best = threshold_curves([], [], 3).best
    assert np.isnan(threshold) and best == 0
    assert threshold_curves([0.5], [False], 0).recall.tolist() == [0]
