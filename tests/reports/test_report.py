"""The page: what is in it, that it needs nothing else, and what is refused."""

import base64
import html.parser
import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mrcnn_ext.reports import report_of_files
from mrcnn_ext.reports.pictures import FOUND_COLOR, TRUTH_COLOR, error_picture

CAT, DOG = 7, 8
KEYPOINTS = ["nose", "left_eye", "right_eye"]


@pytest.fixture
def data(tmp_path, annotation, found, content):
    """Files of three images with found, missed, confused and invented objects."""
    keypoints = {"keypoints": [20, 20, 2, 30, 20, 2, 25, 30, 1], "num_keypoints": 3}
    objects = [
        annotation(1, CAT, (10, 10, 40, 40), **keypoints),
        annotation(2, CAT, (10, 10, 40, 40), **keypoints),
        annotation(3, DOG, (30, 30, 30, 20)),
    ]
    points = {"keypoints": [21, 20, 0.9, 30, 22, 0.9, 25, 30, 0.9]}
    records = [
        found(1, CAT, (10, 10, 40, 38), 0.9, **points),
        found(2, DOG, (12, 10, 40, 38), 0.8, **points),
        found(3, CAT, (70, 5, 20, 20), 0.7, **points),
    ]
    file = content(objects, keypoints=KEYPOINTS, skeleton=[[1, 2], [1, 3]])
    (tmp_path / "truth.json").write_text(json.dumps(file))
    (tmp_path / "results.json").write_text(json.dumps(records))
    (tmp_path / "images").mkdir()
    for image in file["images"]:
        cv2.imwrite(str(tmp_path / "images" / image["file_name"]), np.full((80, 100, 3), 90, np.uint8))
    rows = [
        {"iteration": k, "total_loss": 9 - k, "loss_<b>": 1, "time": 1.0, "data_time": 0.5} for k in (1, 2)
    ]
    rows.append({"iteration": 3, "val/total_loss": 8, "bbox/AP": 12.5, "bbox/AP-cat": 10, "bbox/AP-dog": 15})
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def write(data, **options):
    report_of_files(data / "truth.json", data / "results.json", data / "report.html", **options)
    return (data / "report.html").read_text()


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.pictures, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids += filter(None, [attributes.get("id")])
        self.links += [value for key, value in attributes.items() if key in ("href", "src", "data", "action")]
        if tag == "img":
            self.pictures.append(attributes)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else_and_says_all(data):
    text = write(
        data, image_root=data / "images", metrics=data / "metrics.json", sigmas=[0.1] * 3, title="<Pets>"
    )
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids)) and all(picture["alt"] for picture in page.pictures)
    assert "<Pets>" in words and "<Pets>" not in text  # escaped
    for section in (
        "Training",
        "Classes",
        "Confusion",
        "Calibration",
        "Misses",
        "False alarms",
        "Keypoints",
        "Timing",
    ):
        assert section in words
    assert "3 images of truth, 3 objects, 3 detections · at iteration 3" in words
    assert "cat dog 1 50 %" in words  # the confusion
    assert "dog 1 0.0 0.0 0.0 – – – 0 1 0" in words  # the class table's row
    assert "nose 1 1.0 px" in words and "1 s" in words
    jpegs = [p["src"] for p in page.pictures if p["src"].startswith("data:image/jpeg")]
    assert len(jpegs) == 3  # a confusion, a miss, a false alarm
    assert base64.b64decode(jpegs[0].partition(",")[2])[:2] == b"\xff\xd8"
    figures = [p for p in page.pictures if p["src"].startswith("data:image/svg+xml")]
    assert len(figures) == 8
    for figure in figures:
        svg = base64.b64decode(figure["src"].partition(",")[2]).decode()
        assert "<svg" in svg and not re.search(r'(?:href|src)="(?!#|data:)', svg), figure["alt"]


def test_the_same_files_give_the_same_page(data):
    pages = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "", write(data)) for _ in range(2)]
    assert pages[0] == pages[1]


def test_without_images_metrics_and_predictions(data):
    text = write(data)
    assert (
        "No folder of images was given" in text and "image/jpeg" not in text and 'id="training"' not in text
    )
    (data / "results.json").write_text("[]")
    text = write(data, image_root=data / "images")
    assert "no predictions" in text and text.count("data:image/jpeg") == 3  # the missed objects
    (data / "images" / "1.png").unlink()
    assert "could not be read: 1.png" in write(data, image_root=data / "images")


def test_keypoints_without_sigmas_are_left_out(data):
    assert "Keypoints" not in write(data)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: {"annotations": r}, r"must hold a list of .*; it holds a dict"),
        (lambda r: [{k: v for k, v in r[0].items() if k != "score"}], "record 0 .* lacks score"),
        (
            lambda r: [{**r[0], "image_id": 99}],
            "record 0 .* image_id 99, which is none .* results of other data",
        ),
        (lambda r: [r[0], {**r[0], "category_id": 1}], "record 1 .* category_id 1, which is none"),
        (lambda r: [3], "record 0 .* lacks"),
    ],
)
def test_wrong_results(data, change, message):
    records = json.loads((data / "results.json").read_text())
    (data / "results.json").write_text(json.dumps(change(records)))
    with pytest.raises(ValueError, match=message):
        write(data)


def test_wrong_files(data):
    (data / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is not JSON"):
        write(data)
    (data / "results.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="no file nowhere.json"):
        write(data, metrics="nowhere.json")
    (data / "metrics.json").write_text('{"iteration": 1, "easy/bbox/AP": 5, "hard/bbox/AP": 4}')
    with pytest.raises(
        ValueError, match=r"several data sets \(easy, hard\): say which one the results are of"
    ):
        write(data, metrics=data / "metrics.json")
    with pytest.raises(ValueError, match="there is no 'eazy' in it"):
        write(data, metrics=data / "metrics.json", dataset="eazy")
    assert "of easy" in write(data, metrics=data / "metrics.json", dataset="easy")
    file = json.loads((data / "truth.json").read_text())
    del file["annotations"]
    (data / "truth.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match="truth.json has no annotations"):
        write(data)


def test_an_object_is_in_the_middle_of_its_picture_in_its_color(annotation, found):
    image = np.full((400, 600, 3), 90, np.uint8)
    picture = error_picture(image, [annotation(1, CAT, (280, 190, 40, 20))], [])
    assert picture.shape == (220, 300, 3)
    rows, columns = np.nonzero((picture == TRUTH_COLOR).all(axis=2))
    assert (
        abs((rows.min() + rows.max()) / 2 - 110) <= 2 and abs((columns.min() + columns.max()) / 2 - 150) <= 2
    )
    # 40 of 96 pixels of the image, which 300 of the picture are
    assert abs((columns.max() - columns.min()) - 300 * 40 / 96) <= 4
    both = error_picture(image, [annotation(1, CAT, (0, 0, 9, 9))], [found(1, CAT, (560, 380, 30, 20), 0.5)])
    for color in (TRUTH_COLOR, FOUND_COLOR):
        assert (both == color).all(axis=2).any()


def test_the_command(data):
    from mrcnn_ext.cli.report import command

    arguments = [str(data / "truth.json"), str(data / "results.json"), "--images", str(data / "images")]
    run = CliRunner().invoke(
        command, [*arguments, "--output", str(data / "r.html"), "--sigmas", "0.1,0.1,0.1"]
    )
    assert run.exit_code == 0 and run.output.strip() == str(data / "r.html")
    assert "mean similarity" in (data / "r.html").read_text()
    (data / "metrics.json").write_text('{"iteration": 1, "easy/bbox/AP": 5, "hard/bbox/AP": 4}')
    named = ["--metrics", str(data / "metrics.json"), "--dataset", "easy", "--output", str(data / "r.html")]
    assert CliRunner().invoke(command, [*arguments, *named]).exit_code == 0
    assert "of easy" in (data / "r.html").read_text()
    run = CliRunner().invoke(command, [*arguments, "--sigmas", "a"])
    assert run.exit_code == 2 and "must be numbers with commas between them" in run.output
