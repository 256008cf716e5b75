"""Perfect predictions score 100 whatever the annotation file has, or the check refuses it before training."""

import copy
import json
import math

import pytest

pytest.importorskip("detectron2")

import numpy as np
import torch
from coco_examples import COCO_NAMES, base, change, square, with_keypoints, without
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from mrcnn_ext.data import check_dataset, load_dataset
from mrcnn_ext.engine.checks import check_config
from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.evaluation import build_evaluator
from mrcnn_ext.integrations.torchvision.data import CocoInstances
from mrcnn_ext.integrations.torchvision.evaluation import evaluate_coco

pytestmark = pytest.mark.detectron2


def config(train, test, *opts, keypoints=False, num_classes=2):
    cfg = load_config(
        "", ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", keypoints, "TEST.BOUNDARY_AP", True, *opts]
    )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), (test,)
    return cfg


def perfect(content, image_id=1, shift=0.0):
    """Predictions of all objects of an image of a right file, keypoints ``shift`` pixels off."""
    objects = [a for a in content["annotations"] if a["image_id"] == image_id]
    record = next(image for image in content["images"] if image["id"] == image_id)
    instances = Instances((record["height"], record["width"]))
    boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances.pred_boxes = Boxes(boxes)
    instances.scores = torch.linspace(0.9, 0.8, len(objects))
    instances.pred_classes = torch.tensor([a["category_id"] - 1 for a in objects])
    instances.pred_masks = torch.zeros(len(objects), *instances.image_size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    if "keypoints" in content["annotations"][0]:
        keypoints = torch.tensor([a["keypoints"] for a in objects], dtype=torch.float32)
        keypoints = keypoints.reshape(len(objects), -1, 3)
        keypoints[..., :2] += 0.5 + shift
        instances.pred_keypoints = keypoints
    return {"instances": instances}


def evaluate(name, cfg, content, **options):
    evaluator = build_evaluator(cfg, name, output_dir=None)
    evaluator.reset()
    for image in content["images"]:
        evaluator.process([{"image_id": image["id"]}], [perfect(content, image["id"], **options)])
    scores = {task: values["AP"] for task, values in evaluator.evaluate().items()}
    # A mask that is right, or quite wrong, has such a boundary.
    assert scores.pop("boundary") == pytest.approx(scores["segm"])
    return scores


def right(*edits):
    content = base()
    for edit in edits:
        edit(content)
    return content


def torchvision_results(content):
    results = []
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        results.append({"image_id": 1, "category_id": a["category_id"], "bbox": [x, y, w, h], "score": 0.9})
        mask = np.zeros((20, 30), np.uint8, order="F")
        mask[y : y + h, x : x + w] = 1
        from pycocotools import mask as mask_utils

        results[-1]["segmentation"] = mask_utils.encode(mask)
        if "keypoints" in a:
            results[-1]["keypoints"] = [float(v) for v in a["keypoints"]]
    return results


def all_of(**values):
    def edit(content):
        for annotation in content["annotations"]:
            annotation.update(copy.deepcopy(values))

    return edit


def ids_from_zero(content):
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


IN_THE_FILE = {
    "nothing": [],
    "ids from 0": [ids_from_zero],
    "ids of text": [change(id="a1")],
    "a negative id": [change(id=-1)],
    "no ids": [without("id")],
    "one id for all": [all_of(id=7)],
    "iscrowd as text": [all_of(iscrowd="0")],
    "iscrowd null": [all_of(iscrowd=None)],
    "no area": [without("area")],
    "area null": [all_of(area=None)],
    "area 0": [all_of(area=0)],
    "area as text": [all_of(area="100")],
    "no iscrowd": [without("iscrowd")],
    "nested polygons": [change(segmentation=[[[2, 2], [12, 2], [12, 12], [2, 12]]])],
    "polygons in one list more": [change(segmentation=[[[2, 2, 12, 2, 12, 12, 2, 12]]])],
    "polygons of text": [change(segmentation=[["2", "2", "12", "2", "12", "12", "2", "12"]])],
    "boxes of text": [change(bbox=["2", "2", "10", "10"])],
    "no box": [without("bbox")],
    "image ids of text": [all_of(image_id="1")],
    "categories of text": [change(category_id="1")],
    "sizes of text": [lambda content: content["images"][0].update(height="20", width="30")],
}


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("edits", IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_perfect_predictions_score_100(register, edits, stock):
    train = register(*edits, stock=stock)
    test = register(*edits, stock=stock)
    cfg = config(train, test)
    check_config(cfg)
    scores = evaluate(test, cfg, right())
    assert scores == pytest.approx({"bbox": 100, "segm": 100})
    # What is trained on is what a right file gives.
    good, loaded = load_dataset(register()), load_dataset(train)
    for record, expected in zip(loaded, good, strict=True):
        for annotation, wanted in zip(record["annotations"], expected["annotations"], strict=True):
            assert annotation["bbox"] == wanted["bbox"] and annotation["iscrowd"] == 0
            assert annotation["segmentation"] == wanted["segmentation"]
            assert annotation["category_id"] == wanted["category_id"]


IN_THE_TEST_FILE = {
    "no segmentation": [lambda content: content["annotations"][0].pop("segmentation")],
    "segmentation null": [change(segmentation=None)],
    "segmentation empty": [change(segmentation=[])],
    "two points": [change(segmentation=[[2, 2, 12, 12]])],
}


@pytest.mark.parametrize("edits", IN_THE_TEST_FILE.values(), ids=IN_THE_TEST_FILE)
def test_objects_without_masks_in_the_test_file(register, edits, caplog):
    test = register(*edits)
    cfg = config(register(), test)
    check_config(cfg)
    scores = evaluate(test, cfg, right())
    assert scores == pytest.approx({"bbox": 100, "segm": 100})
    assert "1 of 2 objects have no segmentation" in caplog.text


@pytest.mark.parametrize("edits", IN_THE_FILE.values(), ids=IN_THE_FILE)
def test_torchvision_scores_the_same(write, tmp_path, edits):
    data = CocoInstances(str(tmp_path), write(*edits))
    scores = evaluate_coco(data, torchvision_results(right()), ("bbox", "segm"))
    assert {task: values["AP"] for task, values in scores.items()} == pytest.approx(
        {"bbox": 100, "segm": 100}
    )
    image, target = data[0]
    assert target["boxes"].tolist() == [[2, 2, 12, 12], [15, 2, 25, 12]] and target["labels"].tolist() == [
        1,
        2,
    ]
    assert target["masks"].sum((1, 2)).tolist() == [100, 100] and image.shape == (3, 20, 30)


@pytest.mark.parametrize("edits", IN_THE_TEST_FILE.values(), ids=IN_THE_TEST_FILE)
def test_torchvision_and_objects_without_masks(write, tmp_path, edits):
    data = CocoInstances(str(tmp_path), write(*edits))
    scores = evaluate_coco(data, torchvision_results(right()), ("bbox", "segm"))
    assert {task: values["AP"] for task, values in scores.items()} == pytest.approx(
        {"bbox": 100, "segm": 100}
    )
    assert data[0][1]["labels"].tolist() == [2]


KEYPOINT_EDITS = {
    "nothing": [],
    "ids from 0": [ids_from_zero],
    "num_keypoints 0": [all_of(num_keypoints=0)],
    "no num_keypoints": [without("num_keypoints")],
    "area 0": [all_of(area=0)],
    "triples": [
        lambda content: [
            a.update(keypoints=[a["keypoints"][k : k + 3] for k in range(0, 51, 3)])
            for a in content["annotations"]
        ]
    ],
}


@pytest.mark.parametrize("edits", KEYPOINT_EDITS.values(), ids=KEYPOINT_EDITS)
def test_perfect_keypoints_score_100(register, write, tmp_path, edits):
    train, test = register(with_keypoints, *edits), register(with_keypoints, *edits)
    cfg = config(train, test, keypoints=True)
    check_config(cfg)
    assert evaluate(test, cfg, right(with_keypoints))["keypoints"] == pytest.approx(100)
    data = CocoInstances(str(tmp_path), write(with_keypoints, *edits))
    scores = evaluate_coco(data, torchvision_results(right(with_keypoints)), ("keypoints",))
    assert scores["keypoints"]["AP"] == pytest.approx(100)


def test_the_area_is_that_of_the_mask_where_it_is_missing(register):
    """Keypoints 0.3 pixels off, which OKS judges by the area: 0 makes every distance infinite."""
    scores = [
        evaluate(name, config(name, name, keypoints=True), right(with_keypoints), shift=0.3 / math.sqrt(2))
        for name in (register(with_keypoints), register(with_keypoints, all_of(area=0)))
    ]
    assert scores[1] == pytest.approx(scores[0])
    assert scores[1]["keypoints"] == pytest.approx(90, abs=1)


OBJECTS_WITHOUT_KEYPOINTS = {
    "no key": [lambda content: content["annotations"][0].pop("keypoints")],
    "empty": [change(keypoints=[])],
    "null": [change(keypoints=None)],
    "zeros": [change(keypoints=[0] * 51)],
    "a class without": [
        lambda content: content["categories"][0].pop("keypoints"),
        lambda content: content["annotations"][0].pop("keypoints"),
    ],
    "a class with an empty list": [
        lambda content: content["categories"][0].update(keypoints=[]),
        lambda content: content["annotations"][0].pop("keypoints"),
    ],
}


@pytest.mark.parametrize("stock", [False, True])
@pytest.mark.parametrize("edits", OBJECTS_WITHOUT_KEYPOINTS.values(), ids=OBJECTS_WITHOUT_KEYPOINTS)
def test_objects_without_keypoints_have_none_visible(register, write, tmp_path, edits, stock):
    train, test = (register(with_keypoints, *edits, stock=stock) for _ in range(2))
    if stock:  # which leaves the names to the user
        for name in (train, test):
            MetadataCatalog.get(name).set(keypoint_names=COCO_NAMES, keypoint_flip_map=[])
    cfg = config(train, test, keypoints=True)
    check_config(cfg)
    first, second = load_dataset(train)[0]["annotations"]
    assert not any(first["keypoints"][2::3]) and len(first["keypoints"]) == 51
    assert all(v == 2 for v in second["keypoints"][2::3])
    # An object of which no keypoint is visible counts for boxes alone.
    scores = evaluate(test, cfg, right(with_keypoints))
    assert scores == pytest.approx({"bbox": 100, "segm": 100, "keypoints": 100})
    data = CocoInstances(str(tmp_path), write(with_keypoints, *edits))
    assert data[0][1]["keypoints"][..., 2].sum(1).tolist() == [0, 34]
    scores = evaluate_coco(data, torchvision_results(right(with_keypoints)), ("keypoints",))
    assert scores["keypoints"]["AP"] == pytest.approx(100)


def many(count, keypoints=False):
    """Squares of 10 pixels in rows, of persons."""

    def edit(content):
        content["images"][0].update(height=200, width=200)
        content["annotations"] = []
        for k in range(count):
            x, y = 12 * (k % 16), 12 * (k // 16)
            corners = [x, y, x + 10, y, x + 10, y + 10, x, y + 10]
            one = {**square(k + 1, x), "category_id": 1, "bbox": [x, y, 10, 10], "segmentation": [corners]}
            if keypoints:
                one["keypoints"] = [v for j in range(17) for v in (x + j % 8, y + j // 2, 2)]
            content["annotations"].append(one)
        if keypoints:
            content["categories"][0]["keypoints"] = list(COCO_NAMES)

    return edit


def test_as_many_detections_count_as_the_config_says(register):
    name = register(many(150))
    cfg = config(name, name, "TEST.DETECTIONS_PER_IMAGE", 200)
    assert evaluate(name, cfg, right(many(150))) == pytest.approx({"bbox": 100, "segm": 100})
    cfg = config(name, name, "TEST.DETECTIONS_PER_IMAGE", 100)
    assert evaluate(name, cfg, right(many(150)))["bbox"] == pytest.approx(66.3, abs=0.1)


@pytest.mark.parametrize("detections", [100, 200])
def test_keypoints_of_thirty_people_count(register, detections):
    name = register(many(30, keypoints=True))
    cfg = config(name, name, "TEST.DETECTIONS_PER_IMAGE", detections, keypoints=True)
    scores = evaluate(name, cfg, right(many(30, keypoints=True)))
    assert scores["keypoints"] == pytest.approx(100)


def test_torchvision_counts_as_many_as_are_predicted(write, tmp_path):
    data = CocoInstances(str(tmp_path), write(many(150)))
    scores = evaluate_coco(data, torchvision_results_of_boxes(right(many(150))), ("bbox",))
    assert scores["bbox"]["AP"] == pytest.approx(100)


def torchvision_results_of_boxes(content):
    return [
        {"image_id": 1, "category_id": a["category_id"], "bbox": list(a["bbox"]), "score": 0.9}
        for a in content["annotations"]
    ]


# --- Data registered in Python


def in_python(name, tmp_path, keypoints=True, **changes):
    """Registers the base as a function's dicts, which are the same objects at each call; gives them."""
    annotations = []
    for k, x in enumerate((2, 15)):
        annotation = {
            "bbox": [x, 2, 10, 10],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": k,
            "segmentation": [[x, 2, x + 10, 2, x + 10, 12, x, 12]],
        }
        if keypoints:
            annotation["keypoints"] = [v for j in range(17) for v in (x + 1.0 + j % 8, 3.0 + j // 2, 2)]
        annotations.append({**annotation, **changes})
    dicts = [
        {
            "file_name": str(tmp_path / "1.png"),
            "image_id": 1,
            "height": 20,
            "width": 30,
            "annotations": annotations,
        }
    ]
    DatasetCatalog.register(name, lambda: dicts)
    names = {"keypoint_names": COCO_NAMES, "keypoint_flip_map": []} if keypoints else {}
    MetadataCatalog.get(name).set(thing_classes=["person", "car"], evaluator_type="coco", **names)
    return dicts


def test_the_check_leaves_data_registered_in_python_as_they_are(write, catalog, tmp_path):
    write()
    dicts = in_python("python_data", tmp_path)
    before, metadata = copy.deepcopy(dicts), copy.deepcopy(MetadataCatalog.get("python_data").as_dict())
    check_config(config("python_data", "python_data", keypoints=True))
    assert dicts == before and dicts[0]["annotations"][0]["keypoints"][:2] == [3.0, 3.0]
    assert MetadataCatalog.get("python_data").as_dict() == metadata
    assert load_dataset("python_data")[0]["annotations"][0]["keypoints"][:2] == [3.0, 3.0]


def test_data_that_change_are_scored_as_they_are_now(write, catalog, tmp_path):
    write()
    dicts = in_python("changing_data", tmp_path, keypoints=False)
    cfg = config("changing_data", "changing_data")
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    assert evaluate("changing_data", cfg, right())["bbox"] == pytest.approx(100)
    for annotation in dicts[0]["annotations"]:
        annotation["bbox"][0] += 7
        annotation["segmentation"] = [
            [v + 7 * (k % 2 == 0) for k, v in enumerate(annotation["segmentation"][0])]
        ]
    assert evaluate("changing_data", cfg, right())["bbox"] == 0
    assert not list(tmp_path.rglob("*_coco_format.json"))


def test_numpys_numbers_and_arrays(write, catalog, tmp_path):
    write()
    dicts = in_python("numpy_data", tmp_path)
    for number, annotation in enumerate(dicts[0]["annotations"]):
        annotation["bbox"] = np.array(annotation["bbox"], dtype=np.float32)
        annotation["category_id"] = np.int64(number)
        annotation["keypoints"] = np.array(annotation["keypoints"]).reshape(17, 3)
        annotation["segmentation"] = [np.array(annotation["segmentation"][0])]
        annotation["iscrowd"] = np.bool_(False)
    dicts[0].update(height=np.int32(20), width=np.int32(30), image_id=np.int64(1))
    dicts[0]["annotations"] = np.array(dicts[0]["annotations"], dtype=object).tolist()
    cfg = config("numpy_data", "numpy_data", keypoints=True)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    check_config(cfg)
    content = right(with_keypoints)
    for annotation, given in zip(content["annotations"], dicts[0]["annotations"], strict=True):
        annotation["keypoints"] = [
            float(v) - 0.5 * (k % 3 < 2) for k, v in enumerate(given["keypoints"].ravel())
        ]
    evaluator = build_evaluator(cfg, "numpy_data")
    evaluator.reset()
    evaluator.process([{"image_id": np.int64(1)}], [perfect(content)])
    scores = evaluator.evaluate()
    assert [scores[task]["AP"] for task in ("bbox", "segm", "keypoints")] == pytest.approx([100, 100, 100])
    records = json.loads(
        (tmp_path / "output" / "inference" / "numpy_data" / "coco_instances_results.json").read_text()
    )
    assert [record["image_id"] for record in records] == [1, 1]


def test_bitmaps_as_arrays_are_read_as_masks(write, catalog, tmp_path):
    write()
    dicts = in_python("array_data", tmp_path, keypoints=False)
    for annotation in dicts[0]["annotations"]:
        x = annotation["bbox"][0]
        annotation["segmentation"] = np.zeros((20, 30), bool)
        annotation["segmentation"][2:12, x : x + 10] = True
    cfg = config("array_data", "array_data", "INPUT.MASK_FORMAT", "bitmask")
    check_config(cfg)
    assert evaluate("array_data", cfg, right()) == pytest.approx({"bbox": 100, "segm": 100})
    from mrcnn_ext.data import DatasetMapper

    instances = DatasetMapper(cfg, True)(load_dataset("array_data")[0])["instances"]
    assert len(instances) == 2 and instances.gt_masks.tensor.flatten(1).sum(1).min() > 0


def test_two_images_with_one_id_in_python(write, catalog, tmp_path):
    write()
    dicts = in_python("twin_data", tmp_path, keypoints=False)
    dicts.append({**dicts[0], "file_name": str(tmp_path / "other.png")})
    with pytest.raises(ValueError, match="other.png.*: .*1.png has the same image_id"):
        check_dataset("twin_data", check_images=False)
