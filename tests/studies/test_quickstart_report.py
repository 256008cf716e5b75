"""The picture of a training: what is on it can be told apart."""

import json

import pytest
from matplotlib.colors import to_hex

from mrcnn_ext.reports import TrainingHistory
from mrcnn_ext.reports.figures import training_figure
from mrcnn_ext.studies.report import plot_metrics

ROWS = [
    {
        "iteration": k,
        **{name: 5.0 - k for name in ("total_loss", "loss_cls", "loss_mask")},
        **{f"val/{name}": 5.5 - k for name in ("total_loss", "loss_cls", "loss_mask")},
        **{f"{data}/{task}/AP": 10.0 * k for data in ("easy", "hard") for task in ("bbox", "segm")},
    }
    for k in range(4)
]


def test_training_and_validation_differ_and_legends_lie_beside_the_curves():
    figure = training_figure(TrainingHistory(ROWS), "a title")
    figure.draw_without_rendering()
    total, parts, precision = figure.axes
    training, validation = total.lines
    assert to_hex(training.get_color()) != to_hex(validation.get_color())
    assert [text.get_text() for text in total.get_legend().get_texts()] == ["training", "validation"]
    assert len(parts.lines) == 4 and len(precision.lines) == 4
    looks = [(line.get_color(), line.get_marker()) for line in precision.lines]
    assert len(set(looks)) == 4
    for axes in figure.axes:
        assert axes.get_legend().get_window_extent().y1 < axes.get_window_extent().y0


def test_picture(tmp_path):
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, ROWS)))
    plot_metrics(tmp_path / "metrics.json", tmp_path / "training.png", "quickstart")
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "metrics.json").write_text("what is this\n{}")
    with pytest.raises(ValueError, match="not a line of a metrics.json"):
        plot_metrics(tmp_path / "metrics.json", tmp_path / "training.png")
