"""Cityscapes instance AP through detectron2's trainer and evaluator, on files in the Cityscapes layout."""

import json
import os

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.evaluation import CityscapesInstanceEvaluator as StockEvaluator
from detectron2.structures import Boxes, Instances

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.engine import Trainer
from mrcnn_ext.evaluation import CityscapesInstanceEvaluator
from mrcnn_ext.layers.lazy_masks import LazyMasks

pytestmark = pytest.mark.detectron2

CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
LABEL_IDS = [24, 25, 26, 27, 28, 31, 32, 33]
HEIGHT, WIDTH = 96, 160
# One instance of every class; the two images hold them at different places.
BOXES = [
    [(2 + 39 * (i % 4) + 3 * image, 4 + 46 * (i // 4), 30, 40 - 2 * image) for i in range(8)]
    for image in range(2)
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("cityscapes")
    for image, boxes in enumerate(BOXES):
        stem = f"town_{image:06d}_000019"
        folders = {kind: root / kind / "val" / "town" for kind in ("leftImg8bit", "gtFine")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        instance_ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
        instance_ids[::5] = 3  # void
        objects = []
        for label_id, name, (x, y, w, h) in zip(LABEL_IDS, CLASSES, boxes, strict=True):
            instance_ids[y : y + h, x : x + w] = label_id * 1000
            corners = [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]
            objects.append({"label": name, "polygon": corners})
        label_ids = np.where(instance_ids < 1000, instance_ids, instance_ids // 1000).astype(np.uint8)
        gt = folders["gtFine"]
        cv2.imwrite(
            str(folders["leftImg8bit"] / f"{stem}_leftImg8bit.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        )
        cv2.imwrite(str(gt / f"{stem}_gtFine_instanceIds.png"), instance_ids)
        cv2.imwrite(str(gt / f"{stem}_gtFine_labelIds.png"), label_ids)
        polygons = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
        (gt / f"{stem}_gtFine_polygons.json").write_text(json.dumps(polygons))

    name = "cityscapes_evaluation_test"
    image_dir, gt_dir = str(root / "leftImg8bit" / "val"), str(root / "gtFine" / "val")
    DatasetCatalog.register(name, lambda: load_cityscapes_instances(image_dir, gt_dir))
    MetadataCatalog.get(name).set(
        image_dir=image_dir, gt_dir=gt_dir, evaluator_type="cityscapes_instance", thing_classes=CLASSES
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


class Oracle(torch.nn.Module):
    """Predicts the ground truth moved right by ``shift`` pixels, for the first ``num_classes`` classes."""

    def __init__(self, shift=0, num_classes=8):
        super().__init__()
        self.shift, self.num_classes = shift, num_classes

    def forward(self, batch):
        return [{"instances": self.predict(item["file_name"])} for item in batch]

    def predict(self, file_name):
        image = int(os.path.basename(file_name).split("_")[1])
        masks = torch.zeros(self.num_classes, HEIGHT, WIDTH, dtype=torch.bool)
        for mask, (x, y, w, h) in zip(masks, BOXES[image], strict=False):
            mask[y : y + h, x + self.shift : x + self.shift + w] = True
        instances = Instances((HEIGHT, WIDTH))
        instances.pred_masks = masks
        instances.pred_classes = torch.arange(self.num_classes)
        instances.scores = torch.linspace(0.9, 0.5, self.num_classes)
        return instances


def evaluate(dataset, model, evaluators=None):
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.DATASETS.TEST = (dataset,)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.TEST.TABLES = False
    results = Trainer.test(cfg, model, evaluators)["segm"]
    return {key: results[key] for key in ("AP", "AP50")}


def test_dataset_loads_through_detectron2(dataset):
    dicts = DatasetCatalog.get(dataset)
    assert len(dicts) == 2
    assert sorted(a["category_id"] for a in dicts[0]["annotations"]) == list(range(8))


# A box of 30 pixels moved by s pixels overlaps itself with IoU (30 - s) / (30 + s): 5 pixels give 0.714,
# which passes five of the ten thresholds; 12 pixels give 0.43, which passes none.
@pytest.mark.parametrize(
    "shift, num_classes, ap, ap50", [(0, 8, 100, 100), (5, 8, 50, 100), (12, 8, 0, 0), (0, 4, 50, 50)]
)
def test_known_answers(dataset, tmp_path, monkeypatch, shift, num_classes, ap, ap50):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    results = evaluate(dataset, Oracle(shift, num_classes))
    assert results == pytest.approx({"AP": ap, "AP50": ap50})
    assert list(tmp_path.iterdir()) == [], "evaluation leaves no files"


def test_lazy_masks_score_as_their_bitmaps(dataset):
    class LazyModel(Oracle):
        def predict(self, file_name):
            instances = super().predict(file_name)
            image = int(os.path.basename(file_name).split("_")[1])
            corners = torch.tensor(
                [(x + self.shift, y, x + self.shift + w, y + h) for x, y, w, h in BOXES[image]]
            )
            full = torch.ones(8, 1, 28, 28)
            instances.pred_masks = LazyMasks(full, corners.float(), instances.image_size)
            return instances

    assert evaluate(dataset, LazyModel(5)) == pytest.approx({"AP": 50, "AP50": 100})


def test_masks_are_ranked_by_mask_scores(dataset):
    class Twice(Oracle):
        """Every object right, and by a higher score of its box wrong."""

        scored = False

        def predict(self, file_name):
            right, wrong = super().predict(file_name), super().predict(file_name)
            wrong.pred_masks = wrong.pred_masks.roll(-15, dims=2)
            wrong.scores += 0.1
            both = Instances.cat([right, wrong])
            if self.scored:
                both.mask_scores = torch.cat([right.scores, right.scores - 0.1])
            return both

    assert evaluate(dataset, Twice())["AP"] < 60
    scored = Twice()
    scored.scored = True
    assert evaluate(dataset, scored)["AP"] == pytest.approx(100)


def test_matches_are_those_of_cityscapesscripts(dataset, monkeypatch):
    """Noisy masks, some empty, over void too: everything the scripts keep of a match, but for the file's name."""
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

    class Noisy(Oracle):
        def predict(self, file_name):
            random = torch.Generator().manual_seed(len(file_name))
            instances = Instances((HEIGHT, WIDTH))
            noise = torch.rand(40, 1, 8, 10, generator=random)
            noise = torch.nn.functional.interpolate(noise, (HEIGHT, WIDTH), mode="bilinear")[:, 0]
            instances.pred_masks = noise > torch.linspace(0.4, 1, 40)[:, None, None]
            instances.pred_classes = torch.randint(8, (40,), generator=random)
            instances.scores = torch.rand(40, generator=random)
            return instances

    kept = []
    evaluate_matches = scripts.evaluateMatches

    def keep(matches, args):
        for match in matches.values():
            for group in match["prediction"].values():
                for prediction in group:
                    del prediction["imgName"]
            for group in match["groundTruth"].values():
                for prediction in (p for instance in group for p in instance["matchedPred"]):
                    del prediction["imgName"]
        kept.append(matches)
        return evaluate_matches(matches, args)

    monkeypatch.setattr(scripts, "evaluateMatches", keep)
    ours = evaluate(dataset, Noisy())
    assert ours == evaluate(dataset, Noisy(), StockEvaluator(dataset))
    assert kept[0] == kept[1]
    (image, *_) = kept[0].values()
    assert any(p["matchedGt"] and p["voidIntersection"] for p in image["prediction"]["person"])


def test_detectron2s_own_evaluator_works_too(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = evaluate(dataset, Oracle(5), StockEvaluator(dataset))
    assert results == pytest.approx({"AP": 50, "AP50": 100})
    assert list(tmp_path.iterdir()) == []


def test_no_predictions_score_zero(dataset):
    assert evaluate(dataset, Oracle(num_classes=0)) == pytest.approx({"AP": 0, "AP50": 0})


def test_table_is_logged(dataset, caplog):
    with caplog.at_level("INFO", logger="detectron2"):
        evaluate(dataset, Oracle(5), CityscapesInstanceEvaluator(dataset))
    table = next(message for message in caplog.messages if message.startswith("Cityscapes instance"))
    assert all(name in table for name in CLASSES) and "average" in table


def test_predictions_without_masks_are_refused(dataset):
    class BoxModel(Oracle):
        def predict(self, file_name):
            instances = super().predict(file_name)
            instances.remove("pred_masks")
            return instances

    with pytest.raises(ValueError, match="needs masks: set MODEL.MASK_ON to True"):
        evaluate(dataset, BoxModel())


def test_missing_prediction_is_an_error_not_an_exit(dataset):
    evaluator = CityscapesInstanceEvaluator(dataset)
    evaluator.reset()
    with pytest.raises(RuntimeError, match="Found no prediction for ground truth .*instanceIds.png"):
        evaluator.evaluate()


def test_classes_and_cocos_measure_of_the_same_predictions(dataset):
    class Boxed(Oracle):
        """Right in the first four classes, and boxes that are exact where masks are off."""

        def predict(self, file_name):
            instances = super().predict(file_name)
            image = int(os.path.basename(file_name).split("_")[1])
            corners = [(x, y, x + w, y + h) for x, y, w, h in BOXES[image][: self.num_classes]]
            instances.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32))
            return instances

    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS, cfg.TEST.TABLES = (dataset,), 0, False
    results = Trainer.test(cfg, Boxed(5, 4))
    assert [round(results["segm"][f"AP-{name}"]) for name in CLASSES] == [50] * 4 + [0] * 4
    # IoU of the masks 25 / 35: five of ten thresholds; void does not matter to COCO.
    assert results["coco_segm"]["AP"] == pytest.approx(25, abs=0.1)
    assert results["coco_bbox"]["AP"] == pytest.approx(50, abs=0.1)
    assert results["coco_bbox"]["AP-person"] == pytest.approx(100) and results["coco_bbox"]["AP-bus"] == 0
    assert "coco_segm" not in Trainer.test(
        cfg, Boxed(5), CityscapesInstanceEvaluator(dataset, coco_style=False)
    )
