"""Clips of videos for training: which frames, the same augmentation for all of them, and whose instances are whose."""

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from mrcnn_ext.data import ClipDataset, ClipMapper, build_clip_train_loader, build_train_loader
from mrcnn_ext.data.clips import flatten_clips
from mrcnn_ext.engine import Trainer
from mrcnn_ext.engine.data_order import resumable

pytestmark = pytest.mark.detectron2


def annotation(track, left, **more):
    points = np.stack([left + np.arange(17), np.full(17, 30.0), np.full(17, 2)], axis=1)
    box = [left, 10.0, left + 20, 50.0]
    return {
        "bbox": box,
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "track_id": track,
        "keypoints": points.flatten().tolist(),
        "segmentation": [[left, 10.0, left + 20, 10, left + 20, 50, left, 50]],
        **more,
    }


@pytest.fixture
def dicts(tmp_path):
    """A video of four frames, the third without objects, one of two frames, in no order, and an image."""
    frames = []
    for video, index in [(1, 2), (1, 0), (1, 1), (1, 3), (2, 5), (2, 4), (None, 0)]:
        path = tmp_path / f"{video}_{index}.png"
        cv2.imwrite(str(path), np.random.default_rng(index).integers(0, 255, (64, 80, 3), dtype=np.uint8))
        left = 5.0 + 4 * index
        objects = [annotation(7, left), annotation(3, left + 25), annotation(9, left, iscrowd=1)][
            :: 1 - 2 * (index % 2)
        ]
        image = {"file_name": str(path), "height": 64, "width": 80, "image_id": len(frames)}
        image["annotations"] = [] if (video, index) == (1, 2) else objects
        if video is not None:
            image |= {"video_id": video, "frame_index": index}
        frames.append(image)
    return frames


def indices(dataset):
    return [
        [(f.get("video_id"), f.get("frame_index")) for f in dataset[i]["frames"]] for i in range(len(dataset))
    ]


def test_a_clip_begins_at_each_frame_from_which_there_are_enough(dicts):
    assert indices(ClipDataset(dicts, 3)) == [
        [(1, 0), (1, 1), (1, 2)],
        [(1, 1), (1, 2), (1, 3)],
        [(2, 4), (2, 5)],
        [(None, None)],
    ]
    assert indices(ClipDataset(dicts, 2, stride=3))[0] == [(1, 0), (1, 3)]
    wanted = indices(ClipDataset(dicts, 1, wanted=lambda image: bool(image["annotations"])))
    assert [(1, 2)] not in wanted and len(wanted) == 6
    other = [{**image, "file_name": "elsewhere/" + image["file_name"]} for image in dicts]
    assert len(ClipDataset(dicts + other, 3)) == 8, "two datasets may number their videos alike"


def test_frames_are_in_the_order_of_coco_vids_frame_id_too(dicts):
    for image in dicts:
        if "frame_index" in image:
            image["frame_id"] = image.pop("frame_index")
    frames = ClipDataset(dicts, 4)[0]["frames"]
    assert [frame["frame_id"] for frame in frames] == [0, 1, 2, 3]


@pytest.mark.parametrize("numbers", [{"num_frames": 0}, {"num_frames": 2, "stride": 0}])
def test_clips_of_nothing_are_refused(dicts, numbers):
    with pytest.raises(ValueError, match="NUM_FRAMES and STRIDE of 1 or more"):
        build_clip_train_loader(dicts, mapper=mapper(), total_batch_size=2, **numbers)


def mapper(probability=0.5):
    augmentations = [
        T.RandomFlip(probability),
        T.RandomBrightness(0.5, 1.5),
        T.ResizeShortestEdge([48, 64, 80, 96], 200, "choice"),
        T.RandomCrop("relative_range", (0.7, 0.7)),
    ]
    flips = {"keypoint_hflip_indices": list(range(17))}
    return DatasetMapper(True, augmentations=augmentations, image_format="BGR", use_keypoint=True, **flips)


def test_all_frames_of_a_clip_have_the_same_augmentation(dicts):
    still = [{**dicts[1], "video_id": 5, "frame_index": index} for index in range(3)]
    dataset, clip_mapper = ClipDataset(still, 3), ClipMapper(mapper())
    np.random.seed(0)
    first, *others = [clip_mapper(dataset[0])["frames"] for _ in range(4)]
    for clip in (first, *others):
        for frame in clip[1:]:
            assert torch.equal(frame["image"], clip[0]["image"])
            assert torch.equal(
                frame["instances"].gt_keypoints.tensor, clip[0]["instances"].gt_keypoints.tensor
            )
    assert any(clip[0]["image"].shape != first[0]["image"].shape for clip in others), "always the same"


def test_instances_know_their_tracks(dicts):
    del dicts[2]["annotations"][1]["track_id"]
    clip = ClipMapper(mapper(0.0))(ClipDataset(dicts[1:3], 2)[0])
    for frame in clip["frames"]:
        instances = frame["instances"]
        assert instances.gt_classes.tolist() == [0] * len(instances)
        for track, box in zip(instances.gt_track_ids.tolist(), instances.gt_boxes, strict=True):
            is_right = box[0] > instances.gt_boxes.tensor[:, 0].min()
            assert track in ((3, -1) if is_right else (7,)), "crowds are left out, and the order differs"
    tracks = [frame["instances"].gt_track_ids.tolist() for frame in clip["frames"]]
    assert tracks == [[7, 3], [-1, 7]]


def test_tracks_and_frames_have_numbers(dicts):
    dicts[2]["annotations"][1]["track_id"] = None
    clip = ClipMapper(mapper(0.0))(ClipDataset(dicts[1:3], 2)[0])
    assert [frame["instances"].gt_track_ids.tolist() for frame in clip["frames"]] == [[7, 3], [-1, 7]]
    dicts[2]["annotations"][1]["track_id"] = "p2"
    with pytest.raises(ValueError, match="1_1.png: track_id must be a number for clips, got 'p2'"):
        ClipDataset(dicts[1:3], 2)
    dicts[1]["frame_index"] = None
    with pytest.raises(ValueError, match=r"1_0.png: frame_index \(frame_id\) must be a number .* got None"):
        ClipDataset(dicts[1:3], 2)


def test_clips_of_a_batch_are_told_apart(dicts):
    dataset, clip_mapper = ClipDataset(dicts[1:3], 2), ClipMapper(mapper(0.0))
    frames = flatten_clips([clip_mapper(dataset[0]), clip_mapper(dataset[0])])
    assert [frame["frame_index"] for frame in frames] == [0, 1, 0, 1]
    tracks = [set(frame["instances"].gt_track_ids.tolist()) for frame in frames]
    assert tracks[0] == tracks[1] and tracks[2] == tracks[3] and not tracks[0] & tracks[2]


def test_a_loader_of_clips_can_be_resumed(dicts):
    loader = build_clip_train_loader(dicts, mapper=mapper(), num_frames=2, total_batch_size=4)
    batches = iter(resumable(loader))
    for _ in range(3):
        batch = next(batches)
        assert len(batch) == 4 or any(frame.get("video_id") is None for frame in batch)
        assert all("instances" in frame for frame in batch)
    with pytest.raises(ValueError, match="a batch of 5 images .* make it a multiple of 2"):
        build_clip_train_loader(dicts, mapper=mapper(), num_frames=2, total_batch_size=5)


def test_mistakes(dicts):
    with pytest.raises(ValueError, match="clips of 2 frames need videos, and no image .* has a video_id"):
        ClipDataset(dicts[-1:], 2)
    with pytest.raises(ValueError, match="NUM_FRAMES and STRIDE of 1 or more .*, got 0 and 1"):
        ClipDataset(dicts, 0)
    with pytest.raises(ValueError, match="no clip of the training data is left"):
        ClipDataset(dicts, 2, wanted=lambda image: False)


@pytest.fixture
def registered(dicts):
    name = "clips_for_a_test"
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        thing_classes=["person"],
        keypoint_names=[f"k{i}" for i in range(17)],
        keypoint_flip_map=[],
        evaluator_type="none",
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_training_of_a_yaml_config_goes_over_clips(tiny_cfg, registered, tmp_path):
    cfg = tiny_cfg(
        "MODEL.ROI_KEYPOINT_HEAD.NAME", "ConvLSTMKeypointHead", "MODEL.ROI_KEYPOINT_HEAD.LSTM_DIM", "8"
    )
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (registered,), (), str(tmp_path)
    cfg.INPUT.CLIP.NUM_FRAMES, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 3, 6, 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 100
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 1, 17
    cfg.SOLVER.MAX_ITER, cfg.SEED = 2, 1
    trainer = Trainer(cfg)
    head, frames = trainer.model.roi_heads.keypoint_head, []
    seen = head.network.step

    def step(features, state):
        frames.append(bool(any(part.any() for part in state)))
        return seen(features, state)

    head.network.step = step
    trainer.train()
    assert True in frames, "no RoI follows another"
    for keys, message in (
        (["INPUT.COPY_PASTE.ENABLED", True], "INPUT.COPY_PASTE.ENABLED does not work with clips"),
        (["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"], "must be TrainingSampler for clips"),
        (["SOLVER.IMS_PER_BATCH", 4], "make it a multiple of 3"),
    ):
        wrong = cfg.clone()
        wrong.merge_from_list(keys)
        with pytest.raises(ValueError, match=message):
            build_train_loader(wrong)
