"""The picture of a training: what is on it can be told apart."""

import json

import pytest
from matplotlib.colors import to_hex

from mrcnn_ext.reports import TrainingHistory
from mrcnn_ext.reports.figures import training_figure
from mrcnn_ext.studies import quickstart
from mrcnn_ext.studies.report import best_thresholds, metrics_table, plot_metrics

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


def summary(iterations, seconds, ap):
    points = {"AP": ap, "AP50": ap + 30}
    coco = dict.fromkeys(("bbox", "segm", "keypoints"), points)
    return {"iterations": iterations, "train_seconds": seconds, "coco": coco, "cityscapes": points}


def test_stock_is_trained_as_long_as_ours(monkeypatch, tmp_path):
    asked = []

    def train(data, output, iterations, seed, stock=False):
        asked.append((output.name, iterations, stock))
        iterations = iterations or 1800
        return summary(iterations, iterations * (0.5 if stock else 0.3), 40.0)

    monkeypatch.setitem(quickstart._FRAMEWORKS, "detectron2", train)
    monkeypatch.setattr(quickstart, "_in_detectron2", train)
    monkeypatch.setattr(quickstart, "_pace_of_stock", lambda seed: {"iterations": 40, "train_seconds": 20.0})
    args = quickstart._parse(["--compare-stock", "--output", str(tmp_path / "out")])
    runs = quickstart._runs("detectron2", args, tmp_path)
    assert asked == [("out", None, False), ("stock", 1080, True)]
    assert list(runs) == ["ours", "stock"]
    table = metrics_table(runs).splitlines()
    assert [cell.strip() for cell in table[0].split("|")[2:5]] == ["iterations", "training", "box AP"]
    assert [cell.strip() for cell in table[-1].split("|")[1:5]] == [*("stock", "1080", "540 s", "40.0")]
    # At an equal pace there is no time left.
    assert quickstart.iterations_in_time({"iterations": 900, "train_seconds": 450.0}, 450.0) == 900
    assert quickstart.iterations_in_time({"iterations": 900, "train_seconds": 450.0}, 455.0) == 910
    assert quickstart.iterations_in_time({"iterations": 3, "train_seconds": 3.0}, 4.5) == 4


def test_thresholds_of_the_best_f1_leave_the_false_alarms_out(tmp_path):
    boxes = [[10, 10, 40, 40], [100, 10, 40, 40], [200, 10, 40, 40]]
    annotations = {
        "images": [{"id": 1, "file_name": "a.png", "width": 300, "height": 100}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "rider"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 1600, "iscrowd": 0}
            for k, box in enumerate(boxes)
        ],
    }
    records = [
        {"image_id": 1, "category_id": 1, "bbox": box, "score": score}
        for box, score in zip([*boxes, [10, 55, 40, 40]], (0.9, 0.8, 0.4, 0.3), strict=True)
    ]
    records.append({"image_id": 1, "category_id": 2, "bbox": boxes[0], "score": 0.7})
    for name, content in (("truth", annotations), ("results", records)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    thresholds = best_thresholds(tmp_path / "truth.json", tmp_path / "results.json")
    # A class of which nothing was right or found keeps a usual threshold.
    assert thresholds == {"person": 0.4, "rider": 0.5, "car": 0.5}
