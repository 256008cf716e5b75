"""COCO metrics: known answers, and what detectron2's own evaluator gets wrong."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.evaluation import COCOEvaluator as StockEvaluator
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.structures import Boxes, Instances

from mrcnn_ext.evaluation import CityscapesInstanceEvaluator, COCOEvaluator, build_evaluator
from mrcnn_ext.layers.lazy_masks import LazyMasks
from mrcnn_ext.ops import _extension

pytestmark = pytest.mark.detectron2

HEIGHT, WIDTH = 80, 100
BOXES = [[10, 10, 50, 60], [55, 5, 95, 75]]
RESULTS = "coco_instances_results.json"
ALL_TASKS = ("bbox", "segm", "keypoints")


@pytest.fixture
def make_dataset(tmp_path):
    """Registers one image with a person, who has keypoints, and a car, annotated without."""
    names = []

    def make(num_keypoints=17, **metadata):
        annotations = []
        for i, (x0, y0, x1, y1) in enumerate(BOXES):
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
            area = (x1 - x0) * (y1 - y0)
            box = [x0, y0, x1 - x0, y1 - y0]
            annotations.append(
                dict(
                    id=i + 1,
                    image_id=1,
                    category_id=i + 1,
                    bbox=box,
                    area=area,
                    iscrowd=0,
                    segmentation=[polygon],
                )
            )
        # The car comes first: detectron2 looks for keypoints in the first annotation alone.
        annotations.reverse()
        if num_keypoints:
            annotations[1]["keypoints"] = [
                v for k in range(num_keypoints) for v in (12 + 2 * k, 12 + 2 * k, 2)
            ]
            annotations[1]["num_keypoints"] = num_keypoints
        content = dict(
            images=[dict(id=1, file_name="1.jpg", height=HEIGHT, width=WIDTH)],
            annotations=annotations,
            categories=[dict(id=1, name="person"), dict(id=2, name="car")],
        )
        path = tmp_path / f"{len(names)}.json"
        path.write_text(json.dumps(content))
        names.append(f"coco_evaluation_test_{len(names)}")
        # As load_coco_json would set it.
        ids = {1: 0, 2: 1}
        register_coco_instances(
            names[-1],
            dict(thing_classes=["person", "car"], thing_dataset_id_to_contiguous_id=ids, **metadata),
            str(path),
            str(tmp_path),
        )
        return names[-1]

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def predict(num_keypoints=17, num=2):
    """The ground truth. A keypoint annotated at pixel index i has its centre at i + 0.5."""
    instances = Instances((HEIGHT, WIDTH))
    instances.pred_boxes = Boxes(torch.tensor(BOXES[:num], dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.linspace(0.9, 0.8, num)
    instances.pred_classes = torch.arange(num)
    instances.pred_masks = torch.zeros(num, HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, BOXES, strict=False):
        mask[y0:y1, x0:x1] = True
    position = 12.5 + 2 * torch.arange(num_keypoints, dtype=torch.float32)
    keypoints = torch.stack([position, position, torch.ones(num_keypoints)], dim=1)
    instances.pred_keypoints = keypoints.repeat(num, 1, 1)
    return {"instances": instances}


def evaluate(evaluator, *outputs):
    evaluator.reset()
    for output in outputs:
        evaluator.process([{"image_id": 1}], [output])
    return evaluator.evaluate()


def test_perfect_predictions_where_a_class_has_no_keypoints(make_dataset, tmp_path):
    evaluator = COCOEvaluator(make_dataset(), ALL_TASKS, output_dir=str(tmp_path / "out"))
    results = evaluate(evaluator, predict())
    assert [results[task]["AP"] for task in ALL_TASKS] == pytest.approx([100, 100, 100])
    assert (tmp_path / "out" / "coco_instances_results.json").is_file()


def test_a_results_file_is_whole_or_as_it_was(make_dataset, tmp_path, monkeypatch):
    evaluator, path = COCOEvaluator(make_dataset(), output_dir=str(tmp_path)), tmp_path / RESULTS
    evaluate(evaluator, predict())
    before = path.read_bytes()

    def interrupted(records, file):
        file.write('[{"image_id": 1, ')
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dump", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluator, predict(num=1))
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(f"{RESULTS}?*"))


def test_predictions_are_left_as_they_are(make_dataset):
    evaluator, output = COCOEvaluator(make_dataset(), ALL_TASKS), predict()
    before = output["instances"].pred_keypoints.clone()
    first = evaluate(evaluator, output)
    assert torch.equal(output["instances"].pred_keypoints, before)
    assert evaluate(evaluator, output)["keypoints"]["AP"] == first["keypoints"]["AP"]


@pytest.mark.parametrize(
    "fields", [("pred_masks", "pred_keypoints"), ("pred_masks",), ("pred_keypoints",), ()]
)
def test_results_file_is_detectron2s_byte_for_byte(make_dataset, tmp_path, fields):
    dataset = make_dataset()

    def results_file(make):
        output = predict()
        for field in {"pred_masks", "pred_keypoints"} - set(fields):
            output["instances"].remove(field)
        folder = tmp_path / make.__module__
        evaluate(make(dataset, ("bbox",), output_dir=str(folder)), output)
        return (folder / "coco_instances_results.json").read_bytes()

    assert results_file(COCOEvaluator) == results_file(StockEvaluator)


def test_keypoint_scores_rank_keypoints_alone(make_dataset, tmp_path):
    output = predict(num=1)
    wrong = predict(num=1)["instances"]
    wrong.pred_boxes.tensor += 60
    wrong.pred_masks = ~wrong.pred_masks
    wrong.scores -= 0.05
    output["instances"].pred_keypoints += 60  # the right box and mask first, the right keypoints last
    output["instances"] = Instances.cat([output["instances"], wrong])
    dataset = make_dataset()
    by_box = evaluate(COCOEvaluator(dataset, ALL_TASKS), output)
    output["instances"].keypoint_scores = torch.tensor([0.1, 0.7])
    by_keypoints = evaluate(COCOEvaluator(dataset, ALL_TASKS, output_dir=str(tmp_path)), output)
    assert (by_box["keypoints"]["AP-person"], by_keypoints["keypoints"]["AP-person"]) == pytest.approx(
        (50, 100), abs=1
    )
    for task in ("bbox", "segm"):
        assert by_box[task]["AP-person"] == pytest.approx(100)
        assert dict(by_keypoints[task]) == pytest.approx(dict(by_box[task]), nan_ok=True)
    records = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [record["keypoint_score"] for record in records] == pytest.approx([0.1, 0.7])


def test_lazy_masks_are_never_pasted_and_score_the_same(make_dataset, tmp_path, monkeypatch):
    dataset, masks = make_dataset(), torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    files, scores = [], []
    for kind in (lambda lazy: lazy.tensor, lambda lazy: lazy):
        output = predict()
        boxes = output["instances"].pred_boxes.tensor
        output["instances"].pred_masks = kind(LazyMasks(masks, boxes, (HEIGHT, WIDTH), 0.3))
        # The second time nothing may paste.
        folder = tmp_path / str(len(files))
        scores.append(evaluate(COCOEvaluator(dataset, ALL_TASKS, output_dir=str(folder)), output))
        files.append((folder / "coco_instances_results.json").read_bytes())
        monkeypatch.setattr(LazyMasks, "__getitem__", None)
    assert files[0] == files[1]
    assert dict(scores[1]["segm"]) == pytest.approx(dict(scores[0]["segm"]), nan_ok=True)
    assert 0 < scores[0]["segm"]["AP50"] <= 100


def predict_one_good_box_and_one_good_mask():
    """The person twice: the higher score has its box and another mask, the higher mask score the reverse."""
    instances = predict()["instances"][[0, 0]]
    instances.pred_boxes.tensor[1] += 8
    instances.pred_masks = instances.pred_masks & torch.tensor([False, True])[:, None, None]
    instances.scores = torch.tensor([0.9, 0.8])
    instances.mask_scores = torch.tensor([0.1, 0.7])
    return {"instances": instances}


def test_masks_are_ranked_by_mask_scores_and_boxes_by_scores(make_dataset, tmp_path):
    dataset = make_dataset()
    tasks = ("bbox", "segm", "boundary")
    results = evaluate(
        COCOEvaluator(dataset, tasks, output_dir=str(tmp_path)), predict_one_good_box_and_one_good_mask()
    )
    # AP-person: the other category is never found.
    assert {task: results[task]["AP-person"] for task in tasks} == pytest.approx(dict.fromkeys(tasks, 100))
    records = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert [(r["score"], r["mask_score"]) for r in records] == [
        (pytest.approx(0.9), pytest.approx(0.1)),
        (pytest.approx(0.8), pytest.approx(0.7)),
    ]
    # detectron2's own ranks masks by the boxes' scores: the wrong one first, so that half is precise.
    stock = evaluate(StockEvaluator(dataset, tasks[:2]), predict_one_good_box_and_one_good_mask())
    assert stock["bbox"]["AP-person"] == pytest.approx(100)
    assert stock["segm"]["AP-person"] == pytest.approx(50)


MEMORY = """
import json, resource, sys, torch
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_PERSON_KEYPOINT_NAMES
from detectron2.structures import Boxes, Instances
from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.layers.lazy_masks import LazyMasks

folder, size, count = sys.argv[1], (4000, 6000), 1000
images = [dict(id=1, file_name="1.jpg", height=size[0], width=size[1])]
with open(f"{folder}/images.json", "w") as file:
    json.dump(dict(images=images, categories=[dict(id=1, name="person")]), file)
register_coco_instances("large", {}, f"{folder}/images.json", folder)
evaluator = COCOEvaluator("large", ("bbox", "segm"), output_dir=folder)
masks = torch.nn.functional.avg_pool2d(torch.randn(count, 1, 28, 28), 5, 1, 2).mul(6).sigmoid()
corner = torch.rand(count, 2) * torch.tensor([3000, 2000])
boxes = torch.cat([corner, corner + 200 + torch.rand(count, 2) * torch.tensor([2800, 1800])], dim=1)
instances = Instances(size, pred_boxes=Boxes(boxes), scores=torch.rand(count))
instances.pred_classes = torch.zeros(count, dtype=torch.int64)
instances.pred_masks = LazyMasks(masks, boxes, size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
evaluator.reset()
evaluator.process([{"image_id": 1}], [{"instances": instances}])
evaluator.evaluate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not _extension.is_available(), reason="the compiled operators are not built")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_of_a_thousand_instances_on_a_large_image(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "coco_instances_results.json").stat().st_size > 1e6
    assert int(result.stdout.split()[-1]) < 500 * 1000  # kilobytes; the bitmaps alone would be 24 GB


def test_every_task_is_there_when_nothing_is_predicted(make_dataset):
    results = evaluate(COCOEvaluator(make_dataset(), ALL_TASKS), predict(num=0))
    assert {task: results[task]["AP"] for task in ALL_TASKS} == {task: 0.0 for task in ALL_TASKS}
    assert results["bbox"]["AP-person"] == 0.0
    # Without tasks they are those of the fields that instances have.
    results = evaluate(COCOEvaluator(make_dataset()), predict(num=0))
    assert {task: results[task]["AP"] for task in ("bbox", "segm", "keypoints")} == dict.fromkeys(
        ("bbox", "segm", "keypoints"), 0.0
    )


def test_sigmas_from_argument_or_metadata_serve_any_number_of_keypoints(make_dataset):
    sigmas = [0.1] * 5
    by_argument = COCOEvaluator(make_dataset(5), ALL_TASKS, kpt_oks_sigmas=sigmas)
    by_metadata = COCOEvaluator(make_dataset(5, keypoint_oks_sigmas=sigmas), ALL_TASKS)
    for evaluator in (by_argument, by_metadata):
        assert evaluate(evaluator, predict(5))["keypoints"]["AP"] == pytest.approx(100)


def test_missing_sigmas_are_an_error_at_once(make_dataset):
    with pytest.raises(
        ValueError, match=r"objects have \[5\] keypoints but there are 17 sigmas.*KEYPOINT_OKS_SIGMAS"
    ):
        COCOEvaluator(make_dataset(5), ALL_TASKS)


def test_dataset_without_keypoints_is_evaluated_for_the_rest(make_dataset):
    results = evaluate(COCOEvaluator(make_dataset(0), ("bbox", "segm")), predict())
    assert results["segm"]["AP"] == pytest.approx(100)


def config(**options):
    cfg = get_cfg()
    for key, value in options.items():
        setattr(cfg.MODEL, key, value)
    return cfg


@pytest.mark.parametrize(
    "options, keypoint_names, tasks",
    [
        ({}, [], ("bbox",)),
        ({"MASK_ON": True}, [], ("bbox", "segm")),
        ({"MASK_ON": True, "KEYPOINT_ON": True}, COCO_PERSON_KEYPOINT_NAMES, ALL_TASKS),
        # A dataset without keypoints beside one that has them.
        ({"KEYPOINT_ON": True}, [], ("bbox",)),
    ],
)
def test_build_evaluator_takes_tasks_from_the_config(make_dataset, options, keypoint_names, tasks):
    evaluator = build_evaluator(config(**options), make_dataset(keypoint_names=keypoint_names))
    assert type(evaluator) is COCOEvaluator
    assert evaluator._tasks == tasks


def test_build_evaluator_takes_the_class_from_the_metadata():
    assert type(build_evaluator(config(), "cityscapes_fine_instance_seg_val")) is CityscapesInstanceEvaluator
    assert type(build_evaluator(config(), "voc_2007_val")) is PascalVOCDetectionEvaluator


def test_unknown_evaluator_type_names_the_known_ones():
    MetadataCatalog.get("coco_evaluation_test_untyped").thing_classes = ["person"]
    with pytest.raises(ValueError, match="_untyped: metadata evaluator_type is None; expected one of 'coco'"):
        build_evaluator(config(), "coco_evaluation_test_untyped")
    MetadataCatalog.remove("coco_evaluation_test_untyped")
