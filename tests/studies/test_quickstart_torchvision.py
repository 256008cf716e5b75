import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import yaml

from mrcnn_ext.integrations.torchvision.data import CocoInstances
from mrcnn_ext.integrations.torchvision.evaluation import evaluate_cityscapes, evaluate_coco
from mrcnn_ext.integrations.torchvision.training import train
from mrcnn_ext.scenes import write_dataset
from mrcnn_ext.studies.quickstart_torchvision import build_model, train_and_evaluate

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(root, "easy", num_train=8, num_val=4, seed=3)
    return root


def dataset(scenes, split="val", **settings):
    return CocoInstances(str(scenes), str(scenes / "annotations" / f"instances_{split}.json"), **settings)


def test_trains_and_evaluates(scenes, tmp_path):
    summary = train_and_evaluate(str(CONFIG), str(scenes), str(tmp_path), budget_iterations=3, seed=1)
    assert set(summary) == {
        *("coco", "cityscapes", "iterations", "train_seconds", "folder", "predictions", "report")
    }
    assert set(summary["coco"]) == {"bbox", "segm", "keypoints"}
    for points in (*summary["coco"].values(), summary["cityscapes"]):
        assert set(points) == {"AP", "AP50"} and 0 <= points["AP"] <= 100
    assert "misses" in Path(summary["report"]).read_text()
    first, last = map(json.loads, (tmp_path / "metrics.json").read_text().splitlines())
    assert first["iteration"] == last["iteration"] == 3
    assert first["total_loss"] > first["loss_mask"] > 0 and "segm/AP50" in last
    for prediction in json.loads(Path(summary["predictions"]).read_text()):
        assert {"image_id", "category_id", "bbox", "score", "segmentation", "keypoints"} == set(prediction)
    assert torch.load(tmp_path / "model_final.pth")["roi_heads.mask_head.predictor.weight"].shape[0] == 8


def test_one_seed_gives_one_model(scenes, tmp_path):
    class OneWeight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3))

        def forward(self, images, targets):
            return {"loss": sum(((image.mean((1, 2)) - self.weight) ** 2).sum() for image in images)}

    weights = []
    for folder in ("a", "b"):
        torch.manual_seed(5)
        model = OneWeight()
        train(model, dataset(scenes, "train", flip=True), str(tmp_path / folder), iterations=4, batch_size=2)
        weights.append(model.weight.detach().clone())
    assert torch.equal(*weights) and weights[0].abs().sum() > 0


def test_a_loss_that_is_not_finite_stops_the_training(scenes, tmp_path):
    class Diverging(torch.nn.Linear):
        def forward(self, images, targets):
            return {"loss_mask": self.weight.sum() * float("inf")}

    with pytest.raises(FloatingPointError, match="at iteration 1 .*loss_mask"):
        train(Diverging(1, 1), dataset(scenes), str(tmp_path), iterations=2, batch_size=2, num_workers=0)


def perfect_results(data):
    results = []
    for annotation in data.coco.anns.values():
        if not annotation["iscrowd"]:
            rle = mask_util.encode(np.asfortranarray(data.coco.annToMask(annotation)))
            keypoints = np.array(annotation["keypoints"], dtype=float)
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"],
                    "bbox": annotation["bbox"],
                    "score": 0.9,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "keypoints": keypoints.tolist(),
                }
            )
    return results


def test_the_ground_truth_itself_is_judged_perfect(scenes):
    data = dataset(scenes, "train")
    results = perfect_results(data)
    coco = evaluate_coco(data, results)
    assert [coco[task]["AP"] for task in ("bbox", "segm", "keypoints")] == pytest.approx([100, 100, 100])
    cityscapes = evaluate_cityscapes(data, results, str(scenes / "gtFine" / "train"))
    assert cityscapes["AP50"] == pytest.approx(100) and cityscapes["AP"] > 90


def test_nothing_found_is_an_ap_of_zero(scenes):
    assert evaluate_coco(dataset(scenes), [])["segm"]["AP50"] == 0
    cityscapes = evaluate_cityscapes(dataset(scenes), [], str(scenes / "gtFine" / "val"))
    assert cityscapes["AP"] == cityscapes["AP50"] == 0


def test_targets_are_the_annotations(scenes):
    data = dataset(scenes, "train")
    for (image, target), image_id in zip(data, data.ids, strict=True):
        annotations = [a for a in data.coco.imgToAnns[image_id] if not a["iscrowd"]]
        assert image.shape == (3, 160, 256) and 0 <= image.min() and image.max() <= 1
        assert target["labels"].tolist() == [a["category_id"] for a in annotations]
        for box, mask, keypoints, annotation in zip(
            target["boxes"], target["masks"], target["keypoints"], annotations, strict=True
        ):
            x, y, width, height = annotation["bbox"]
            assert box.tolist() == [x, y, x + width, y + height]
            assert mask.numpy().tolist() == data.coco.annToMask(annotation).tolist()
            assert (keypoints[:, 2] > 0).sum() == annotation["num_keypoints"]


def test_flipping_mirrors_everything(scenes):
    data = dataset(scenes, "train")
    with_people = next(target for _, target in data if (target["keypoints"][..., 2] > 0).any())
    image = torch.rand(3, 160, 256)
    mirrored_image, mirrored = data._mirror(image, {key: value.clone() for key, value in with_people.items()})
    assert torch.equal(mirrored_image, image.flip(-1))
    left, right = data.keypoint_names.index("left_wrist"), data.keypoint_names.index("right_wrist")
    before, after = with_people["keypoints"][:, left], mirrored["keypoints"][:, right]
    seen = before[:, 2] > 0
    assert torch.equal(after[:, 2], before[:, 2])
    torch.testing.assert_close(after[seen, 0], 256 - before[seen, 0])
    again = data._mirror(mirrored_image, mirrored)[1]
    for key, value in again.items():
        torch.testing.assert_close(value, with_people[key])


def test_what_the_config_asks_for_that_torchvision_has_not():
    config = yaml.safe_load(CONFIG.read_text())
    config["MODEL"]["ROI_KEYPOINT_HEAD"].update(CONV_DIMS=[8], NUM_KEYPOINTS=5)
    config["INPUT"]["MIN_SIZE_TRAIN"] = [160]
    deconvs = [m for m in build_model(config).modules() if isinstance(m, torch.nn.ConvTranspose2d)]
    assert deconvs[-1].out_channels == 5
    config["MODEL"]["FPN"]["NORM"] = "GN"
    with pytest.raises(ValueError, match='MODEL.FPN.NORM must be "" or "BN" without detectron2, got \'GN\''):
        build_model(config)


def test_no_scenes(tmp_path):
    with pytest.raises(FileNotFoundError, match="instances_train.json"):
        train_and_evaluate(str(CONFIG), str(tmp_path / "nowhere"), str(tmp_path))


def test_no_cityscapes_ground_truth(scenes, tmp_path):
    with pytest.raises(FileNotFoundError, match="gtFine_instanceIds"):
        evaluate_cityscapes(dataset(scenes), [], str(tmp_path))
