"""On data with nothing to mend every number is that of detectron2's own reading and evaluation."""

import contextlib
import io

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import COCOEvaluator as StockEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_utils

from mrcnn_ext.data import load_dataset, register_scenes
from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.scenes import write_dataset

pytestmark = pytest.mark.detectron2

TASKS = ("bbox", "segm", "keypoints")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "scenes"
    write_dataset(root, "easy", num_train=0, num_val=6, formats=["coco"])
    before = set(DatasetCatalog.list())
    register_scenes(str(root), "as_detectron2")
    yield "as_detectron2_val"
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_the_dicts_are_detectron2s(scenes):
    metadata = MetadataCatalog.get(scenes)
    ours = load_dataset(scenes)
    with contextlib.redirect_stdout(io.StringIO()):
        stock = load_coco_json(metadata.json_file, metadata.image_root, scenes)
    assert len(ours) == len(stock) == 6
    for record, expected in zip(ours, stock, strict=True):
        for annotation, wanted in zip(record["annotations"], expected["annotations"], strict=True):
            assert {key: annotation[key] for key in wanted} == wanted
        assert {**record, "annotations": 0} == {**expected, "annotations": 0}


def noisy(record, random):
    """The objects of a record and as many false ones, all a little off."""
    objects = [a for a in record["annotations"] if not a["iscrowd"]]
    size = (record["height"], record["width"])
    instances = Instances(size)
    boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in objects]).reshape(
        -1, 4
    )
    boxes = np.concatenate([boxes + random.normal(0, 1.5, boxes.shape), random.uniform(0, 90, boxes.shape)])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    count = len(boxes)
    instances.scores = torch.tensor(random.random(count), dtype=torch.float32)
    classes = [a["category_id"] for a in objects]
    instances.pred_classes = torch.tensor(classes + random.integers(0, 8, count - len(objects)).tolist())
    rles = [mask_utils.merge(mask_utils.frPyObjects(a["segmentation"], *size)) for a in objects]
    masks = [np.roll(mask_utils.decode(rle), random.integers(0, 3), axis=1).astype(bool) for rle in rles]
    masks += [random.random(size) < 0.01 for _ in range(count - len(objects))]
    instances.pred_masks = torch.tensor(np.array(masks).reshape(count, *size))
    points = [np.reshape(a["keypoints"], (17, 3)) for a in objects] + [np.zeros((17, 3))] * (
        count - len(objects)
    )
    points = np.array(points).reshape(count, 17, 3)
    points[..., :2] += random.normal(0, 2, points[..., :2].shape)
    instances.pred_keypoints = torch.tensor(points, dtype=torch.float32)
    return {"instances": instances}


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_the_scores_are_detectron2s(scenes, use_fast_impl):
    scores = []
    for evaluator_class in (COCOEvaluator, StockEvaluator):
        random = np.random.default_rng(0)
        evaluator = evaluator_class(scenes, TASKS, use_fast_impl=use_fast_impl)
        evaluator.reset()
        for record in load_dataset(scenes):
            evaluator.process([record], [noisy(record, random)])
        scores.append(evaluator.evaluate())
    assert list(scores[0]) == list(scores[1])
    for task in TASKS:
        assert dict(scores[0][task]) == pytest.approx(dict(scores[1][task]), nan_ok=True)
        assert 5 < scores[0][task]["AP50"] < 100
