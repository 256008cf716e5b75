"""Any value in any field: the check names the place, or the data load, train, are evaluated and are drawn."""

import contextlib
import copy

import pytest

pytest.importorskip("detectron2")

import cv2
import torch
from coco_examples import with_keypoints
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer

from mrcnn_ext.data import DatasetMapper, load_dataset
from mrcnn_ext.engine.checks import check_config
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.engine.setup import load_config, register_datasets
from mrcnn_ext.evaluation import build_evaluator
from mrcnn_ext.integrations.torchvision.data import CocoInstances

pytestmark = pytest.mark.detectron2

ODD = {
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -3,
    "fraction": 0.5,
    "huge": 1e30,
    "not a number": float("nan"),
    "infinite": float("inf"),
    "empty text": "",
    "text": "abc",
    "number as text": "1",
    "empty list": [],
    "list": [1],
    "list of text": ["a"],
    "list of null": [None, None, None, None],
    "nested": [[[1, 2], [3, 4], [9, 9]]],
    "deeply nested": [[[[[1, 2]]]]],
    "empty object": {},
    "object": {"counts": "abc", "size": [20, 30]},
    "huge list": [1e30] * 6,
}
FIELDS = {
    "annotations": ["id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "keypoints"]
    + ["num_keypoints", "ignore"],
    "images": ["id", "file_name", "height", "width"],
    "categories": ["id", "name", "keypoints", "skeleton"],
}


def config(name):
    cfg = load_config("", ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "INPUT.MASK_FORMAT", "bitmask"])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.INPUT.MIN_SIZE_TRAIN = (20,)
    return cfg


def perfect():
    instances = Instances((20, 30))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 12, 12], [15, 2, 25, 12]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    instances.pred_masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    instances.pred_masks[0, 2:12, 2:12] = instances.pred_masks[1, 2:12, 15:25] = True
    instances.pred_keypoints = torch.ones(2, 17, 3)
    return {"instances": instances}


def use(name, cfg):
    for record in load_dataset(name):
        DatasetMapper(cfg, True)(record)
        Visualizer(cv2.imread(record["file_name"]), MetadataCatalog.get(name)).draw_dataset_dict(record)
        evaluator = build_evaluator(cfg, name, output_dir=None)
        evaluator.reset()
        evaluator.process([record], [perfect()])
        assert set(evaluator.evaluate()) == {"bbox", "segm", "keypoints"}


@pytest.mark.parametrize(
    "section, field", [(section, field) for section in FIELDS for field in FIELDS[section]]
)
def test_odd_values_are_named_or_work(write, catalog, tmp_path, section, field):
    accepted = 0
    for number, (kind, value) in enumerate({**ODD, "missing": KeyError}.items()):

        def edit(content, value=value):
            with_keypoints(content)
            if value is KeyError:
                content[section][0].pop(field, None)
            else:
                content[section][0][field] = copy.deepcopy(value)

        path, name = write(edit), f"odd_{number}"
        try:
            register_datasets([[name, path, str(tmp_path)]])
            cfg = config(name)
            check_config(cfg)
        except UserError as error:
            assert name in str(error), f"{kind}: {error}"
            assert path in str(error) or "1.png" in str(error), f"{kind}: {error}"
            with contextlib.suppress(ValueError, OSError):  # but nothing else; it needs less
                CocoInstances(str(tmp_path), path)[0]
            continue
        accepted += 1
        use(name, cfg)
        if not isinstance(load_dataset(name)[0]["image_id"], int):
            with pytest.raises(ValueError, match="ids of its images must be whole numbers"):
                CocoInstances(str(tmp_path), path)
            continue
        data = CocoInstances(str(tmp_path), path)
        assert [len(data[k][1]["boxes"]) for k in range(len(data))] == [
            sum(not a["iscrowd"] for a in record["annotations"]) for record in load_dataset(name)
        ], kind
    # These are mended or left out, or do not matter, whatever they are.
    harmless = ("area", "ignore", "image_id", "num_keypoints", "skeleton")
    assert accepted < len(ODD) + 1 or field in harmless or (section, field) == ("annotations", "id")
