"""Boundary AP: the boundary, the combined IoU and the task, against loops over pixels."""

import contextlib
import io
import json

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.evaluation import COCOEvaluator, build_evaluator
from mrcnn_ext.evaluation.boundary import BoundaryCOCOeval, boundary_of
from mrcnn_ext.evaluation.build import _warn_once

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 30, 40  # of diagonal 50: boundaries of one pixel


def boundary_by_loop(mask, distance):
    """Pixels of the mask with a pixel outside of it, or of the image, within the distance on both axes."""
    near = np.zeros_like(mask)
    height, width = mask.shape
    steps = range(-distance, distance + 1)
    for y, x in zip(*np.nonzero(mask), strict=True):
        around = [(y + dy, x + dx) for dy in steps for dx in steps]
        near[y, x] = any(not (0 <= v < height and 0 <= u < width and mask[v, u]) for v, u in around)
    return near


def blob(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for _ in range(3):
        y, x, h, w = rng.integers([0, 0, 4, 4], [20, 28, 14, 16])
        mask[y : y + h, x : x + w] = 1
    return mask


@pytest.mark.parametrize("ratio, distance", [(0.02, 1), (0.04, 2), (0.1, 5), (0.001, 1)])
def test_boundary_is_what_lies_within_the_distance(ratio, distance):
    for seed in range(5):
        mask = blob(seed)
        assert np.array_equal(boundary_of(mask, ratio), boundary_by_loop(mask, distance))
    assert (
        boundary_of(np.ones((HEIGHT, WIDTH), np.uint8), ratio).sum()
        == boundary_by_loop(np.ones((HEIGHT, WIDTH), np.uint8), distance).sum()
        > 0
    ), "the image's edge is an outline"


def rle(mask):
    encoded = mask_utils.encode(np.asfortranarray(mask))
    return {**encoded, "counts": encoded["counts"].decode()}


def ground_truth(masks, crowds=()):
    annotations = [
        dict(
            id=i + 1,
            image_id=1,
            category_id=1,
            segmentation=rle(mask),
            bbox=mask_utils.toBbox(rle(mask)).tolist(),
            area=int(mask.sum()),
            iscrowd=int(i in crowds),
        )
        for i, mask in enumerate(masks)
    ]
    images = [dict(id=1, file_name="1.png", height=HEIGHT, width=WIDTH)]
    return dict(images=images, annotations=annotations, categories=[dict(id=1, name="thing")])


def coco(content):
    api = COCO()
    api.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_iou_is_the_smaller_of_the_masks_and_of_their_boundaries():
    truth, found = [blob(seed) for seed in range(4)], [blob(seed) for seed in range(10, 14)]
    scores = [0.3, 0.9, 0.1, 0.6]
    api = coco(ground_truth(truth, crowds=[2]))
    records = [
        dict(image_id=1, category_id=1, segmentation=rle(m), score=s)
        for m, s in zip(found, scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = BoundaryCOCOeval(api, api.loadRes(records), dilation_ratio=0.04)
        evaluation.evaluate()
    found = [found[i] for i in np.argsort(scores)[::-1]]
    expected = np.empty((4, 4))
    for i, prediction in enumerate(found):
        for k, mask in enumerate(truth):
            boundaries = iou(boundary_by_loop(prediction, 2), boundary_by_loop(mask, 2))
            # COCO's IoU with a crowd is the part of the prediction within it.
            crowd = (prediction & mask).sum() / prediction.sum()
            expected[i, k] = crowd if k == 2 else min(iou(prediction, mask), boundaries)
    assert evaluation.ious[1, 1] == pytest.approx(expected)


@pytest.fixture
def dataset(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4:26, 5:35] = 1
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(ground_truth([mask])))
    register_coco_instances(
        "boundary_test",
        dict(thing_classes=["thing"], thing_dataset_id_to_contiguous_id={1: 0}),
        str(path),
        str(tmp_path),
    )
    yield "boundary_test", mask
    DatasetCatalog.remove("boundary_test")
    MetadataCatalog.remove("boundary_test")


def evaluate(evaluator, masks):
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_masks = (
        torch.from_numpy(np.stack(masks)).bool() if masks else torch.zeros(0, HEIGHT, WIDTH)
    )
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 4, 35, 26]] * len(masks)).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.5, len(masks))
    instances.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    return evaluator.evaluate()


def test_task_of_the_evaluator(dataset):
    name, mask = dataset
    evaluator = COCOEvaluator(name, ("bbox", "segm", "boundary"))
    assert evaluate(evaluator, [mask])["boundary"]["AP"] == pytest.approx(100)
    # Two pixels off on one side: the masks agree, their outlines of one pixel do not.
    shifted = np.roll(mask, 2, axis=1)
    results = evaluate(evaluator, [shifted])
    combined = min(iou(shifted, mask), iou(boundary_by_loop(shifted, 1), boundary_by_loop(mask, 1)))
    thresholds = np.arange(0.5, 1, 0.05)
    assert results["boundary"]["AP"] == pytest.approx(100 * (combined >= thresholds).mean())
    assert results["segm"]["AP"] == pytest.approx(100 * (iou(shifted, mask) >= thresholds).mean())
    assert results["segm"]["AP"] > results["boundary"]["AP"]
    assert evaluate(evaluator, [])["boundary"]["AP"] == 0


def test_without_the_task_there_is_no_boundary_ap(dataset):
    name, mask = dataset
    assert "boundary" not in evaluate(COCOEvaluator(name, ("bbox", "segm")), [mask])


@pytest.mark.parametrize("mask_on, expected", [(True, True), (False, False)])
def test_config_key(dataset, mask_on, expected):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.MODEL.MASK_ON = mask_on
    assert "boundary" not in evaluate(build_evaluator(cfg, dataset[0]), [dataset[1]])
    cfg.TEST.BOUNDARY_AP = True
    assert ("boundary" in evaluate(build_evaluator(cfg, dataset[0]), [dataset[1]])) is expected


def asked_for(mask_on=True):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.MODEL.MASK_ON, cfg.TEST.BOUNDARY_AP = mask_on, True
    return cfg


def test_where_it_cannot_be_computed_one_warning_says_so(dataset, caplog, tmp_path):
    name, _ = dataset
    _warn_once.cache_clear()
    for _ in range(2):
        build_evaluator(asked_for(mask_on=False), name)
    assert (
        caplog.text.count("TEST.BOUNDARY_AP is left out: the model predicts no masks (MODEL.MASK_ON is") == 1
    )
    caplog.clear()
    MetadataCatalog.get("boundary_voc").set(
        evaluator_type="pascal_voc", thing_classes=["thing"], dirname=str(tmp_path), split="val", year=2012
    )
    for _ in range(2):
        build_evaluator(asked_for(), "boundary_voc")
    MetadataCatalog.remove("boundary_voc")
    assert (
        caplog.text.count("TEST.BOUNDARY_AP is left out for dataset 'boundary_voc': its metadata evaluator_")
        == 1
    )


def test_data_of_cocos_format_with_and_without_masks(tmp_path, caplog):
    content = ground_truth([blob(1), blob(2)])
    del content["annotations"][1]["segmentation"]
    (tmp_path / "some.json").write_text(json.dumps(content))
    del content["annotations"][0]["segmentation"]
    (tmp_path / "none.json").write_text(json.dumps(content))
    for name in ("some", "none"):
        metadata = dict(thing_classes=["thing"], thing_dataset_id_to_contiguous_id={1: 0})
        register_coco_instances(f"boundary_{name}", metadata, str(tmp_path / f"{name}.json"), str(tmp_path))
    try:
        evaluator = build_evaluator(asked_for(), "boundary_some")
        assert evaluate(evaluator, [blob(1)])["boundary"]["AP"] == pytest.approx(100)
        assert "BOUNDARY_AP" not in caplog.text
        assert "boundary" not in evaluate(build_evaluator(asked_for(), "boundary_none"), [blob(1)])
        assert "for dataset 'boundary_none': none of its objects has a segmentation" in caplog.text
    finally:
        for name in ("some", "none"):
            DatasetCatalog.remove(f"boundary_{name}")
            MetadataCatalog.remove(f"boundary_{name}")
