"""Writes and registers the examples."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for coco_examples

from coco_examples import base  # noqa: E402


@pytest.fixture
def write(tmp_path):
    """Writes the base with edits, and its image, and gives the path of the annotation file."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(
        tmp_path / "1.png"
    )
    count = [0]

    def make(*edits):
        content = base()
        for edit in edits:
            edit(content)
        count[0] += 1
        path = tmp_path / f"annotations{count[0]}.json"
        path.write_text(json.dumps(content))
        return str(path)

    return make


@pytest.fixture
def catalog():
    """Names that are taken out of detectron2's catalogs again."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def register(write, catalog, tmp_path):
    """Registers the base with edits in COCO's format and gives its name; ``stock`` by detectron2's function."""
    from detectron2.data.datasets import register_coco_instances

    from mrcnn_ext.data import register_coco_format

    count = [0]

    def make(*edits, stock=False, description=None):
        count[0] += 1
        name = f"example_{count[0]}"
        path = write(*edits)
        if stock:
            register_coco_instances(name, {}, path, str(tmp_path))
        else:
            register_coco_format(name, path, str(tmp_path), description)
        return name

    return make
