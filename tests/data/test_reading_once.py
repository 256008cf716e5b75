"""Annotation files are parsed once while a training is prepared, and anew afterwards."""

import json
import os
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("detectron2")

from coco_examples import change

from mrcnn_ext.data import coco_file, load_dataset
from mrcnn_ext.data.problems import Problems
from mrcnn_ext.data.reading_once import reading_once
from mrcnn_ext.engine.train_net import main

pytestmark = pytest.mark.detectron2


@pytest.fixture
def parsed(monkeypatch):
    """Counts how often files are gone through."""
    counts, stream = Counter(), coco_file.stream_sections

    def counting(path, **options):
        counts[Path(path).name] += 1
        return stream(path, **options)

    monkeypatch.setattr(coco_file, "stream_sections", counting)
    return counts


def test_within_it_files_that_do_not_change_are_read_once(register, parsed):
    name = register(change(area=None))
    with reading_once():
        first = load_dataset(name)
        before = dict(parsed)
        problems = Problems(name)
        assert load_dataset(name, problems) is first and dict(parsed) == before
        assert [finding.kind for finding in problems.warnings], "the findings come again"
    assert load_dataset(name) is not first and dict(parsed) != before


def test_a_file_that_changes_is_read_again(register):
    from detectron2.data import MetadataCatalog

    name = register()
    path = Path(MetadataCatalog.get(name).json_file)
    with reading_once():
        assert len(load_dataset(name)[0]["annotations"]) == 2
        content = json.loads(path.read_text())
        content["annotations"].pop()
        path.write_text(json.dumps(content))
        assert len(load_dataset(name)[0]["annotations"]) == 1
        os.remove(path)
        with pytest.raises(FileNotFoundError, match="is not on disk"):
            load_dataset(name)


def run(write, catalog, tiny_cfg, tmp_path, *opts, **arguments):
    cfg = tiny_cfg("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 1, "SOLVER.STEPS", ())
    train, test = write(), write(change(area=None))
    cfg.DATASETS.COCO_FORMAT = [["once_train", train, str(tmp_path)], ["once_test", test, str(tmp_path)]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("once_train",), ("once_test",)
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATALOADER.NUM_WORKERS = False, 2, 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.merge_from_list(list(opts))
    file = tmp_path / "config.yaml"
    file.write_text(cfg.dump())
    defaults = {"eval_only": False, "resume": False, "num_gpus": 0, "trust_files": False}
    main(Namespace(config_file=str(file), opts=[], **{**defaults, **arguments}))
    return Path(train).name, (tmp_path / "out" / "log.txt").read_text()


def test_training_reads_its_data_once(write, catalog, tiny_cfg, tmp_path, parsed):
    train, log = run(write, catalog, tiny_cfg, tmp_path, recipe="auto")
    assert parsed[train] == 2, "ids and categories first, then the annotations"
    # Told before training; the validation losses, which read the data too, do not tell it again.
    assert log.count("it has no area: that of its mask is taken") == 1
