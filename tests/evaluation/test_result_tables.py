"""Tables of results: what is in them, and the files."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

from mrcnn_ext.evaluation.coco_metrics import TruthCOCO, evaluate_task, precisions_of
from mrcnn_ext.evaluation.published import CITYSCAPES_COLUMNS, CITYSCAPES_ROWS
from mrcnn_ext.evaluation.result_tables import draw_tables, result_tables, write_tables

COCO = {
    "bbox": {"AP": 40.25, "AP50": 60.0, "AP75": 44.0, "APs": 20.0, "APm": 45.0, "APl": float("nan"),
             "AP-cat": 50.5, "AP-dog": 30.0},
    "segm": {"AP": 36.0, "AP50": 57.0, "AP75": 38.0, "APs": 17.0, "APm": 39.0, "APl": 52.0,
             "AP-cat": 46.0, "AP-dog": 26.0},
    "keypoints": {"AP": 64.0, "AP50": 86.0, "AP75": 69.0, "APm": 58.0, "APl": 73.0},
}  # fmt: skip
CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CITYSCAPES = {
    "segm": {"AP": 31.0, "AP50": 49.0, **{f"AP-{name}": 10.0 + k for k, name in enumerate(CLASSES)}},
    "coco_bbox": {"AP": 35.0, "AP50": 60.0, "AP75": 30.0, "APs": 1.0, "APm": 2.0, "APl": 3.0},
    "coco_segm": {"AP": 33.0, "AP50": 58.0, "AP75": 29.0, "APs": 1.0, "APm": 2.0, "APl": 3.0},
}


def test_coco_table_and_classes():
    table, classes = result_tables(COCO)
    assert table.head == ("", "AP", "AP50", "AP75", "AP S", "AP M", "AP L")
    assert table.cells() == [
        ["box", "40.2", "60.0", "44.0", "20.0", "45.0", "–"],
        ["mask", "36.0", "57.0", "38.0", "17.0", "39.0", "52.0"],
        ["keypoints", "64.0", "86.0", "69.0", "–", "58.0", "73.0"],
    ]
    assert classes.head == ("class", "box", "mask"), "there is one class of keypoints"
    assert classes.cells() == [["cat", "50.5", "46.0"], ["dog", "30.0", "26.0"]]
    assert "| box | 40.2 |" in table.markdown() and "| --- | ---: |" in table.markdown()


def test_bars_in_names_do_not_break_the_markdown():
    (table,) = result_tables({"bbox": {"AP-a|b": 1.0}})[1:]
    assert r"| a\|b | 1.0 |" in table.markdown()


def test_cityscapes_under_the_published_rows():
    table, coco = result_tables(CITYSCAPES, "val")
    assert table.head[2:] == (
        "AP val", "AP test", "AP50", "person", "rider", "car", "truck", "bus", "train", "mcycle", "bicycle"
    )  # fmt: skip
    assert [row[0] for row in table.rows] == [
        "InstanceCut", "DWT", "SAIS", "DIN", "SGN", "Mask R-CNN", "Mask R-CNN", "this run, on val"
    ]  # fmt: skip
    own = table.cells()[-1]
    assert own[2:] == ["31.0", "–", "49.0", "10.0", "11.0", "12.0", "13.0", "14.0", "15.0", "16.0", "17.0"]
    assert table.own == (7,) and "**31.0**" in table.markdown()
    assert table.rows[6][1:] == (
        "fine + COCO",
        36.4,
        32.0,
        58.1,
        34.8,
        27.0,
        49.1,
        30.1,
        40.9,
        30.9,
        24.1,
        18.7,
    )
    assert coco.cells()[1][:2] == ["mask", "33.0"] and coco.title == "Average precision by COCO's measure"
    on_test = result_tables({"segm": CITYSCAPES["segm"]}, "test")[0]
    assert on_test.cells()[-1][2:4] == ["–", "31.0"]
    # The mean of the published classes is the published AP on test.
    for name, _, values in CITYSCAPES_ROWS:
        assert len(values) == len(CITYSCAPES_COLUMNS)
        assert np.mean(values[3:]) == pytest.approx(values[1], abs=0.06), name


def test_other_results_have_tables_of_their_own():
    tables = result_tables({"bbox": {"AP": 1.0}, "pck": {"PCK@0.2": 90.0, "jitter": float("nan")}})
    assert tables[1].head == ("", "pck") and tables[1].cells() == [["PCK@0.2", "90.0"], ["jitter", "–"]]
    assert result_tables({}) == []


@pytest.mark.parametrize("results, split", [(COCO, ""), (CITYSCAPES, "val")])
def test_files_hold_every_number(tmp_path, results, split):
    tables = result_tables(results, split)
    paths = write_tables(tables, tmp_path / "deep" / "folder", "some_val")
    assert [p.rsplit("/", 1)[1] for p in paths] == ["results.csv", "results.md", "results.png"]
    with open(paths[0], newline="") as file:
        rows = {(r["table"], r["row"], r["column"]): r["value"] for r in csv.DictReader(file)}
    assert len(rows) == sum(len(t.rows) * (len(t.head) - t.labels) for t in tables)
    for table in tables:
        for row in table.rows:
            for column, value in zip(table.head[table.labels :], row[table.labels :], strict=True):
                label = ", ".join(text for text in row[: table.labels] if text)
                written = rows[table.title, label, column]
                none = value is None or math.isnan(value)
                assert written == "" if none else float(written) == value
    text = (tmp_path / "deep" / "folder" / "results.md").read_text()
    assert text.startswith("# some_val\n") and all(table.title in text for table in tables)
    pixels = np.asarray(Image.open(paths[2]).convert("L"))
    assert pixels.shape[1] > 500 and (pixels < 100).mean() > 0.002, "something is drawn"


def test_eighty_classes_fit_into_the_picture():
    results = {"bbox": {"AP": 1.0, **{f"AP-class {k}": float(k) for k in range(80)}}}
    figure = draw_tables(result_tables(results), "coco")
    bars = figure.axes[1]
    labels = [t.get_text() for t in bars.get_yticklabels()]
    assert labels[0] == "class 79" and labels[-1] == "class 0" and len(labels) == 40
    assert "the best and the worst 20 of 80" in bars.get_title(loc="left")
    assert figure.get_size_inches()[1] < 14


def test_classes_without_objects_have_no_bars():
    values = {f"AP-class {k}": float(k) if k < 3 else float("nan") for k in range(80)}
    bars = draw_tables(result_tables({"bbox": {"AP": 1.0, **values}}), "coco").axes[1]
    assert [t.get_text() for t in bars.get_yticklabels()] == ["class 2", "class 1", "class 0"]
    assert "(77 have no objects)" in bars.get_title(loc="left")
    none = {f"AP-class {k}": float("nan") for k in range(2)}
    assert draw_tables(result_tables({"bbox": {"AP": 1.0, **none}}), "coco").axes[1].get_yticklabels() == []


def test_precisions_of_an_evaluation():
    truth = TruthCOCO(
        {
            "images": [{"id": 1, "height": 100, "width": 100}],
            "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [
                {
                    "id": 1,
                    "image_id": 1,
                    "category_id": 3,
                    "bbox": [5, 5, 40, 40],
                    "area": 1600,
                    "iscrowd": 0,
                },
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 9,
                    "bbox": [50, 5, 40, 40],
                    "area": 1600,
                    "iscrowd": 0,
                },
            ],
        }
    )
    found = [{"image_id": 1, "category_id": 9, "bbox": [50, 5, 40, 40], "score": 0.5}]
    precisions = precisions_of(evaluate_task(truth, found, "bbox"))
    assert precisions["AP-dog"] == pytest.approx(100) and precisions["AP-cat"] == 0
    assert precisions["AP"] == precisions["APm"] == pytest.approx(50) and math.isnan(precisions["APl"])
