"""Copy-paste: what is pasted, what is hidden by it, and how configs ask for it."""

import copy
import itertools

import numpy as np
import pytest

pytest.importorskip("detectron2")

import torch
from coco_examples import with_keypoints
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.data import DatasetMapper as StockMapper
from detectron2.data import build_detection_train_loader
from detectron2.data import get_detection_dataset_dicts as stock_dicts
from detectron2.data import transforms as T
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from omegaconf import OmegaConf

from mrcnn_ext.data import (
    CopyPasteMapper,
    DatasetMapper,
    build_copy_paste_train_loader,
    build_train_loader,
    load_dataset,
    read_lazily,
)
from mrcnn_ext.data.copy_paste import paste_objects
from mrcnn_ext.engine.checks import check_config
from mrcnn_ext.engine.data_order import resumable
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.engine.setup import load_config

pytestmark = pytest.mark.detectron2


def sample(value, boxes, size=(20, 30), keypoints=None):
    """A mapper's sample: an image of one value, objects that fill their x0, y0, x1, y1."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.full((len(boxes),), value)
    instances.gt_masks = BitMasks(masks)
    if keypoints is not None:
        instances.gt_keypoints = Keypoints(torch.tensor(keypoints, dtype=torch.float32))
    image = torch.full((3, *size), value, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def test_what_lies_below_is_cut_moved_and_dropped():
    points = [[[3, 3, 2], [8, 8, 2], [8, 8, 0]], [[0, 0, 0]] * 3, [[13, 13, 1]] * 3]
    below = sample(1, [[2, 2, 10, 10], [20, 2, 28, 10], [12, 12, 14, 14]], keypoints=points)
    before = copy.deepcopy(below)
    donor = sample(2, [[6, 2, 16, 16], [0, 0, 3, 3]], keypoints=[[[9, 9, 2]] * 3, [[1, 1, 2]] * 3])
    result = paste_objects(below, donor, [0])
    instances = result["instances"]
    assert instances.gt_classes.tolist() == [1, 1, 2], (
        "the third of the first image is hidden, one was not chosen"
    )
    assert instances.gt_boxes.tensor.tolist() == [[2, 2, 6, 10], [20, 2, 28, 10], [6, 2, 16, 16]]
    assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [32, 64, 140]
    assert instances.gt_keypoints.tensor[0].tolist() == [[3, 3, 2], [8, 8, 1], [8, 8, 0]]
    assert instances.gt_keypoints.tensor[2].tolist() == [[9, 9, 2]] * 3
    over = torch.zeros(20, 30, dtype=torch.bool)
    over[2:16, 6:16] = True
    assert (result["image"] == torch.where(over, 2, 1)).all()
    assert (below["image"] == 1).all() and len(below["instances"]) == 3
    for field, value in before["instances"].get_fields().items():
        now = below["instances"].get(field)
        assert torch.equal(getattr(now, "tensor", now), getattr(value, "tensor", value)), field


def test_images_of_other_sizes_and_without_objects():
    donor = sample(
        2, [[10, 10, 40, 40], [32, 2, 38, 8]], size=(50, 60), keypoints=[[[12, 12, 2], [35, 35, 2]]] * 2
    )
    empty = sample(1, [])
    for field in ("gt_masks",):
        empty["instances"].remove(field)
    result = paste_objects(empty, donor, [0, 1])["instances"]
    assert result.gt_boxes.tensor.tolist() == [[10, 10, 30, 20]] and result.image_size == (20, 30)
    assert result.gt_keypoints.tensor.tolist() == [[[12, 12, 2], [0, 0, 0]]], "one of them is outside"
    small = sample(3, [[0, 0, 5, 5]], size=(5, 5))
    large = paste_objects(donor, small, [0])
    assert large["instances"].gt_keypoints.tensor[-1].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert (large["image"][:, :5, :5] == 3).all() and (large["image"][:, 5:] == 2).all()
    assert paste_objects(donor, empty, []) is donor


def pasting(name, *opts):
    opts = ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "INPUT.COPY_PASTE.ENABLED", True, *opts]
    opts += ["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", (20,)]
    cfg = load_config("", [*opts, "DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,)])
    return cfg


def some_images(content):
    """Four images; the crowd of each covers its right half."""
    with_keypoints(content)
    image, person = content["images"][0], content["annotations"][0]
    content["images"] = [{**image, "id": k} for k in range(1, 5)]
    content["annotations"] = []
    for k in range(1, 5):
        moved = [v + 2 * (k - 1) * (1 - i % 2) for i, v in enumerate(person["segmentation"][0])]
        x = person["bbox"][0] + 2 * (k - 1)
        content["annotations"] += [
            {**person, "id": 2 * k, "image_id": k, "segmentation": [moved], "bbox": [x, *person["bbox"][1:]]},
            {
                "id": 2 * k + 1,
                "image_id": k,
                "category_id": 2,
                "iscrowd": 1,
                "bbox": [15, 0, 15, 20],
                "area": 300,
                "segmentation": {"size": [20, 30], "counts": [300, 300]},
            },
        ]


def test_yaml_of_polygons_with_crowds(register):
    cfg = pasting(register(some_images))
    loader = build_train_loader(cfg)
    counts = set()
    for (found,) in itertools.islice(loader, 20):
        instances = found["instances"]
        assert isinstance(instances.gt_masks, BitMasks) and set(instances.gt_classes.tolist()) <= {0}
        assert torch.allclose(
            instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor, atol=1.01
        )
        masks = instances.gt_masks.tensor.int().sum(0)
        assert masks.max() == 1, "no pixel has two objects"
        counts.add(len(instances))
    assert counts == {1, 2}
    cfg.MODEL.MASK_ON = False
    assert not next(iter(build_train_loader(cfg)))[0]["instances"].has("gt_masks")


def test_resumed_trainings_see_the_same_pictures(register):
    name = register(some_images)
    first = resumable(build_train_loader(pasting(name)))
    pictures = iter(first)
    next(pictures), next(pictures)
    state = first.state_dict()
    expected = [next(pictures)[0] for _ in range(5)]
    second = resumable(build_train_loader(pasting(name)))
    second.load_state_dict(state)
    for found, wanted in zip(second, expected, strict=False):
        assert torch.equal(found[0]["image"], wanted["image"])
        assert torch.equal(found[0]["instances"].gt_masks.tensor, wanted["instances"].gt_masks.tensor)


def test_what_is_wrong_is_told(register):
    name = register(with_keypoints)
    with pytest.raises(ValueError, match=r"INPUT.COPY_PASTE.PROBABILITY .* in \[0, 1\], got 1.5"):
        build_train_loader(pasting(name, "INPUT.COPY_PASTE.PROBABILITY", 1.5))
    with pytest.raises(ValueError, match="INPUT.COPY_PASTE.MAX_OBJECTS .* at least 0 .* got -1"):
        build_train_loader(pasting(name, "INPUT.COPY_PASTE.MAX_OBJECTS", -1))
    mapper = StockMapper(is_train=True, augmentations=[], image_format="BGR")
    with pytest.raises(ValueError, match="use_instance_mask=True and instance_mask_format='bitmask'"):
        CopyPasteMapper(mapper, [])

    def without(content):
        with_keypoints(content)
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    cfg = pasting(register(without), "MODEL.MASK_ON", False)
    with pytest.raises(UserError, match="has no segmentation"):
        check_config(cfg)


def lazy(name, **mapper):
    """detectron2's common data config, in small."""
    return OmegaConf.create(
        {
            "dataloader": {
                "train": L(build_detection_train_loader)(
                    dataset=L(stock_dicts)(names=name),
                    mapper=L(StockMapper)(
                        is_train=True,
                        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=20), L(T.RandomFlip)()],
                        image_format="BGR",
                        **mapper,
                    ),
                    total_batch_size=1,
                    num_workers=0,
                )
            }
        },
        flags={"allow_objects": True},
    )


def test_lazy_config(register):
    name = register(some_images)
    cfg = lazy(name, use_instance_mask=True, instance_mask_format="bitmask")
    cfg.dataloader.train._target_ = build_copy_paste_train_loader
    cfg.dataloader.train.max_objects = 1
    read_lazily(cfg)
    counts = [len(found["instances"]) for (found,) in itertools.islice(instantiate(cfg.dataloader.train), 20)]
    assert set(counts) == {1, 2}
    cfg.dataloader.train.probability = 0.0
    counts = [len(found["instances"]) for (found,) in itertools.islice(instantiate(cfg.dataloader.train), 9)]
    assert set(counts) == {1}


def test_jitter_and_rare_classes_of_a_lazy_config(register):
    """What datasets/README.md shows."""
    name = register(some_images)
    cfg = lazy(name)
    train = cfg.dataloader.train
    train.mapper.augmentations = [
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=48, target_width=48),
        L(T.FixedSizeCrop)(crop_size=(48, 48)),
        L(T.RandomFlip)(horizontal=True),
        L(T.RandomBrightness)(intensity_min=0.6, intensity_max=1.4),
    ]
    train.sampler = L(RepeatFactorTrainingSampler)(
        repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
            dataset_dicts="${dataloader.train.dataset}", repeat_thresh=1.0
        )
    )
    read_lazily(cfg)
    loader = instantiate(cfg.dataloader.train)
    assert all(found["image"].shape == (3, 48, 48) for (found,) in itertools.islice(loader, 4))


def test_two_steps_of_training(register, tiny_cfg, tmp_path):
    from mrcnn_ext.engine import Trainer

    name = register(some_images)
    cfg = tiny_cfg("INPUT.COPY_PASTE.ENABLED", True, "SOLVER.MAX_ITER", 2, "OUTPUT_DIR", str(tmp_path))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(load_dataset(name)[0]["annotations"][0]["keypoints"]) // 3
    cfg.INPUT.LSJ.ENABLED, cfg.INPUT.LSJ.SIZE = True, 64
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS = 0, 2, ()
    trainer = Trainer(cfg)
    assert isinstance(trainer._trainer.data_loader.dataset._map_func._obj, CopyPasteMapper)
    assert isinstance(trainer._trainer.data_loader.dataset._map_func._obj.mapper, DatasetMapper)
    trainer.train()
    assert np.isfinite(trainer.storage.latest()["total_loss"][0])
