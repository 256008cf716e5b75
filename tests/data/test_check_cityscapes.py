"""What Cityscapes' loader and evaluation would stumble on is found before training."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("cityscapesscripts")

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_instances
from detectron2.structures import Instances

from mrcnn_ext.data import check_dataset
from mrcnn_ext.evaluation import CityscapesInstanceEvaluator

pytestmark = pytest.mark.detectron2

CLASSES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
STEM = "town_000000_000019_"
SIZE = (40, 60)


@pytest.fixture
def tree(tmp_path, catalog):
    """A car of 20 x 20 pixels in a void of 10 rows; gives the folders of images and of ground truth."""
    folders = [tmp_path / kind / "val" for kind in ("leftImg8bit", "gtFine")]
    for folder in folders:
        (folder / "town").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(folders[0] / "town" / f"{STEM}leftImg8bit.png")
    ids = np.full(SIZE, 7, np.uint16)
    ids[:10] = 3
    ids[15:35, 10:30] = 26001
    truth = folders[1] / "town" / f"{STEM}gtFine_"
    Image.fromarray(ids).save(f"{truth}instanceIds.png")
    Image.fromarray(np.where(ids < 1000, ids, 26).astype(np.uint8)).save(f"{truth}labelIds.png")
    car = {"label": "car", "polygon": [[10, 15], [29, 15], [29, 34], [10, 34]]}
    content = {"imgHeight": SIZE[0], "imgWidth": SIZE[1], "objects": [car]}
    with open(f"{truth}polygons.json", "w") as file:
        json.dump(content, file)
    images, gt = map(str, folders)
    DatasetCatalog.register("town", lambda: load_cityscapes_instances(images, gt))
    MetadataCatalog.get("town").set(
        image_dir=images, gt_dir=gt, evaluator_type="cityscapes_instance", thing_classes=CLASSES
    )
    return folders


def test_a_right_tree_passes(tree):
    assert len(check_dataset("town", num_classes=8, needs_masks=True)[0]["annotations"]) == 1


@pytest.mark.parametrize(
    "place", [".DS_Store", "town/Thumbs.db", "town/town_000000_000019_leftImg8bit.jpg", "readme.txt"]
)
def test_stray_files_are_named(tree, place):
    (tree[0] / place).write_text("")
    with pytest.raises(ValueError, match=f"{place}: it does not belong there: only .* may; remove it"):
        check_dataset("town")


def test_stray_files_beside_the_ground_truth_do_not_matter(tree):
    (tree[1] / ".DS_Store").write_text("")
    (tree[1] / "town" / f"{STEM}gtFine_color.png").write_text("")
    check_dataset("town")


def test_an_image_more_in_the_ground_truth(tree):
    (tree[1] / "town" / "town_000001_000019_gtFine_instanceIds.png").write_text("")
    with pytest.raises(
        ValueError, match="town_000001.*instanceIds.png: there is no image .*leftImg8bit.png for it"
    ):
        check_dataset("town")


@pytest.mark.parametrize("suffix", ["instanceIds.png", "labelIds.png", "polygons.json"])
def test_ground_truth_that_is_missing(tree, suffix):
    (tree[1] / "town" / f"{STEM}gtFine_{suffix}").unlink()
    with pytest.raises(FileNotFoundError, match=f"image town/{STEM}leftImg8bit.png: .*{suffix} is missing"):
        check_dataset("town")


def test_a_class_that_cityscapes_does_not_have(tree):
    MetadataCatalog.remove("town")
    MetadataCatalog.get("town").set(
        image_dir=str(tree[0]),
        gt_dir=str(tree[1]),
        evaluator_type="cityscapes_instance",
        thing_classes=[*CLASSES[:-1], "horse"],
    )
    with pytest.raises(
        ValueError, match="Cityscapes has no instances of 'horse' to evaluate: thing_classes must be"
    ):
        check_dataset("town")
    with pytest.raises(ValueError, match="Cityscapes has no instances of 'horse'"):
        CityscapesInstanceEvaluator("town")


@pytest.mark.parametrize("on_the_car, ap", [(False, 0), (True, 100)])
def test_predictions_on_ignored_regions_are_not_counted(tree, on_the_car, ap):
    """All of them: nothing is left to be wrong, and nothing was found."""
    evaluator = CityscapesInstanceEvaluator("town")
    evaluator.reset()
    instances = Instances(SIZE)
    instances.pred_masks = torch.zeros(1 + on_the_car, *SIZE, dtype=torch.bool)
    instances.pred_masks[0, :10] = True
    if on_the_car:
        instances.pred_masks[1, 15:35, 10:30] = True
    instances.pred_classes = torch.full((1 + on_the_car,), 2)
    instances.scores = torch.tensor([0.9, 0.8])[: 1 + on_the_car]
    evaluator.process(
        [{"file_name": str(tree[0] / "town" / f"{STEM}leftImg8bit.png")}], [{"instances": instances}]
    )
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(ap)
