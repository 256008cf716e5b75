"""Data that a data file names, and the command, run in this process."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from mrcnn_ext_command import command


@pytest.fixture
def data_file(tmp_path, monkeypatch):
    """skis/skiers.yaml in the working directory: bright rectangles of two classes on dark noise."""
    folder = tmp_path / "skis"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(4):
        image = rng.integers(0, 60, (64, 80, 3), dtype=np.uint8)
        x, y, w, h = 5 + i, 8, 40, 30 + i
        image[y : y + h, x : x + w] = 220
        cv2.imwrite(str(folder / f"{i}.png"), image)
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": 64, "width": 80})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [polygon]}
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, **box})
    categories = [{"id": 1, "name": "skier"}, {"id": 2, "name": "sledge"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "skiers.yaml").write_text("train: [annotations.json, .]\nval: [annotations.json, .]\n")
    return "skis/skiers.yaml"


@pytest.fixture
def run():
    """Runs the command in this process; gives what it printed, and fails on another exit code than ``code``.

    What the program turns into one line, exception and exit code, is given as "error: ...".
    """

    def run(*arguments, code=0):
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        found, output = result.exit_code, result.output
        if isinstance(result.exception, (ValueError, OSError)):  # as mrcnn_ext_command.main
            found, output = 2 if isinstance(result.exception, ValueError) else 1, f"error: {result.exception}"
        assert found == code, f"{output}\n{result.exception!r}"
        return output

    return run
