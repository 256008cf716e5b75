"""What the figures draw of what was computed."""

import numpy as np
import pytest

from mrcnn_ext.reports import KeypointError, Matches, TrainingHistory, figures, reliability, threshold_curves
from mrcnn_ext.reports.precision import ClassResult, TaskResult


def history(num_classes=2, **more):
    names = [f"c{k}" for k in range(num_classes)]
    rows = []
    for iteration in (9, 19):
        rows.append({"iteration": iteration, "total_loss": 2.0, "loss_cls": 1.0, "val/loss_cls": 1.5, **more})
        rows.append(
            {"iteration": iteration, **{f"bbox/AP-{name}": iteration for name in names}, "bbox/AP": 5.0}
        )
    return TrainingHistory(rows)


def result(num_classes=2, task="bbox"):
    curve = np.linspace(1, 0, 101)
    classes = [ClassResult(f"c{k}", 3, 0.5, 0.6, 0.4, curve) for k in range(num_classes)]
    curves = {0.5: curve, 0.75: curve, 0.9: curve}
    recalls = np.linspace(0, 1, 101)
    return TaskResult(task, {"AP": 0.5}, classes, recalls, curves, np.array([0.9]), np.array([True]), 3)


def test_losses_have_a_panel_each_with_both_curves():
    total, cls = (axes for axes in figures.losses_figure(history()).axes if axes.has_data())
    assert (total.get_title(), cls.get_title()) == ("total_loss", "loss_cls")
    assert len(total.lines) == 1 and [list(line.get_ydata()) for line in cls.lines] == [[1, 1], [1.5, 1.5]]


def test_classes_over_time_where_they_can_be_told_apart():
    (axes,) = figures.class_precision_figure(history(3)).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[9, 19]] * 3
    assert figures.class_precision_figure(history(11)) is None
    assert figures.class_precision_figure(history(1)) is None
    assert (
        figures.class_precision_figure(TrainingHistory([{"iteration": 1, "bbox/AP-a": 3, "bbox/AP-b": 3}]))
        is None
    )


@pytest.mark.parametrize("num_classes, labelled", [(1, 0), (3, 3), (30, 0)])
def test_precision_and_recall(num_classes, labelled):
    figure = figures.precision_recall_figure(
        {"bbox": result(num_classes), "segm": result(num_classes, "segm")}
    )
    box, mask = figure.axes
    assert len(box.lines) == (num_classes if num_classes > 1 else 0) + 3
    (legend,) = figure.legends
    assert len(legend.get_texts()) == labelled + 3


@pytest.mark.parametrize("num_classes, numbers", [(3, 4), (80, 0)])
def test_confusion_has_numbers_where_there_is_room(num_classes, numbers):
    counts = np.zeros((num_classes + 1,) * 2, dtype=np.int64)
    counts[0, 0], counts[0, 1], counts[-1, 0], counts[1, -1] = 3, 1, 2, 9
    matches = Matches(list(range(num_classes)), counts)
    figure = figures.confusion_figure(matches, [f"a very long name of class {k}" for k in range(num_classes)])
    (axes,) = figure.axes
    assert len(axes.texts) == numbers
    shares = axes.images[0].get_array()
    assert shares[0, 0] == 0.75 and shares[1, -1] == 1 and shares[-1, 0] == 1  # of each row
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-1] == "missed" and len(labels[0]) == 16
    figure.draw_without_rendering()


def test_reliability_thresholds_keypoints_and_timing():
    figure = figures.reliability_figure({"bbox": reliability([0.1, 0.9], [False, True])})
    assert figure.axes[0].get_title() == "box: ECE 0.100"
    figure = figures.threshold_figure({"bbox": threshold_curves([0.9, 0.4], [True, False], 1)})
    # In the title, where it lies on no curve.
    assert figure.axes[0].get_title() == "box: best F1 1.00 at 0.90" and not figure.axes[0].texts
    nothing = figures.threshold_figure({"bbox": threshold_curves([], [], 1)})
    assert nothing.axes[0].get_title() == "box"
    error = KeypointError("left_eye", 3, 2.0, np.array([0.01, 0.02, 0.04]), 0.5, 0.0)
    missing = KeypointError("nose", 0, float("nan"), np.full(3, np.nan), float("nan"), float("nan"))
    (axes,) = figures.keypoint_figure([error, missing]).axes
    assert [bar.get_width() for bar in axes.patches] == [2, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["left eye", "nose"]
    figure = figures.timing_figure(history(time=0.5, data_time=0.1))
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[0.5, 0.5], [0.1, 0.1]]


def test_the_same_figure_is_the_same_text():
    assert figures.as_data_uri(figures.losses_figure(history())) == figures.as_data_uri(
        figures.losses_figure(history())
    )
