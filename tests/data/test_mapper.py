"""Augmentation and sampling that a config asks for."""

import numpy as np
import pytest

pytest.importorskip("detectron2")

from coco_examples import with_keypoints
from detectron2.config import get_cfg
from detectron2.data import transforms as T

from mrcnn_ext.data import DatasetMapper, build_train_loader, load_dataset
from mrcnn_ext.engine.setup import load_config

pytestmark = pytest.mark.detectron2


def config(name, *opts):
    cfg = load_config(
        "", ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "DATALOADER.NUM_WORKERS", 0, *opts]
    )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    return cfg


def kinds(mapper):
    return [type(augmentation) for augmentation in mapper.augmentations.augs]


def test_by_default_augmentations_are_detectron2s(register):
    name = register(with_keypoints)
    assert kinds(DatasetMapper(config(name), True)) == [T.ResizeShortestEdge, T.RandomFlip]


def test_large_scale_jitter(register):
    name = register(with_keypoints)
    cfg = config(name, "INPUT.LSJ.ENABLED", True, "INPUT.LSJ.SIZE", 64, "INPUT.CROP.ENABLED", True)
    mapper = DatasetMapper(cfg, True)
    assert kinds(mapper) == [T.ResizeScale, T.FixedSizeCrop, T.RandomFlip]
    record, widths = load_dataset(name)[0], set()
    for seed in range(12):
        np.random.seed(seed)
        sample = mapper(record)
        assert sample["image"].shape == (3, 64, 64)
        instances = sample["instances"]
        if len(instances):
            # The boxes are those of the masks, which fill them.
            boxes = instances.gt_boxes.tensor
            assert np.allclose(boxes, instances.gt_masks.get_bounding_boxes().tensor)
            widths.add(round(float(boxes[0, 2] - boxes[0, 0]), 1))
            assert len(instances.gt_keypoints) == len(instances)
    assert len(widths) > 5 and max(widths) > 4 * min(widths)
    assert kinds(DatasetMapper(cfg, False)) == [T.ResizeShortestEdge], "never in testing"


def test_color_jitter_leaves_places_alone(register):
    name = register(with_keypoints)
    record = load_dataset(name)[0]
    opts = ("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", (20,))
    plain = DatasetMapper(config(name, *opts), True)(record)
    jittered = DatasetMapper(config(name, *opts, "INPUT.COLOR_JITTER", 0.4), True)(record)
    assert jittered["image"].shape == plain["image"].shape and (jittered["image"] != plain["image"]).any()
    assert jittered["instances"].gt_boxes.tensor.equal(plain["instances"].gt_boxes.tensor)
    with pytest.raises(ValueError, match="INPUT.COLOR_JITTER must be at least 0 and below 1, got 1.5"):
        DatasetMapper(config(name, "INPUT.COLOR_JITTER", 1.5), True)


def test_rare_classes_are_sampled_more_often(register, tmp_path):
    def rare(content):
        with_keypoints(content)
        image, person = content["images"][0], content["annotations"][0]
        car = {**content["annotations"].pop(), "id": 99, "image_id": 9}
        content["images"] = [{**image, "id": k} for k in range(1, 10)]
        content["annotations"] = [{**person, "id": k, "image_id": k} for k in range(1, 9)] + [car]

    name = register(rare)
    cfg = config(name, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "SOLVER.IMS_PER_BATCH", 1)
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.SEED = 1.0, 0
    loader = iter(build_train_loader(cfg))
    ids = [next(loader)[0]["image_id"] for _ in range(200)]
    # The root of 1 over 1/9 of the images: three times as often.
    assert 0.2 < ids.count(9) / len(ids) < 0.35


def test_in_testing_the_training_datasets_need_not_be_known():
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON, cfg.DATASETS.TRAIN = True, ("keypoints_of_another_machine",)
    mapper = DatasetMapper(cfg, False)
    assert kinds(mapper) == [T.ResizeShortestEdge] and cfg.MODEL.KEYPOINT_ON
    with pytest.raises(AttributeError, match="keypoint_names"):
        DatasetMapper(cfg, True)
