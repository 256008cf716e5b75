"""Registers the video datasets that are on disk."""

from __future__ import annotations

import os

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from .keypoint_names import mirrored_pairs, suggested_sigmas
from .video import VIDEO_READERS
from .video.bbc_pose import BBC_KEYPOINTS, BBC_SKELETON
from .video.jhmdb import JHMDB_KEYPOINTS, JHMDB_SKELETON
from .video.penn_action import PENN_KEYPOINTS, PENN_SKELETON
from .video.posetrack import POSETRACK_KEYPOINTS, POSETRACK_SKELETON

__all__ = ["register_video_dataset", "register_videos_on_disk"]

_JHMDB_SPLITS = [f"{sub}{part}_{k}" for sub in ("", "sub_") for part in ("train", "test") for k in (1, 2, 3)]
# By the reader's name: folders that the publishers' archives unpack to, splits, keypoints and lines between them.
_DATASETS = {
    "penn_action": (("Penn_Action",), ("train", "test"), PENN_KEYPOINTS, PENN_SKELETON),
    "bbc_pose": (("bbc_pose", "bbcpose"), ("train", "val", "test"), BBC_KEYPOINTS, BBC_SKELETON),
    "jhmdb": (("JHMDB", "jhmdb"), _JHMDB_SPLITS, JHMDB_KEYPOINTS, JHMDB_SKELETON),
    "posetrack18": (
        ("posetrack18", "posetrack2018", "PoseTrack18"),
        ("train", "val"),
        POSETRACK_KEYPOINTS,
        POSETRACK_SKELETON,
    ),
}
_WHITE = (255, 255, 255)


class _VideoLoader:
    """What is registered: reads the publisher's files at each call."""

    def __init__(self, kind: str, root: str, split: str):
        self.kind, self.root, self.split = kind, root, split

    def __call__(self) -> list[dict]:
        content = VIDEO_READERS[self.kind](self.root, self.split)
        dicts = {}
        for image in content["images"]:
            dicts[image["id"]] = {
                "file_name": os.path.join(self.root, image["file_name"]),
                "image_id": image["id"],
                **{key: image[key] for key in ("height", "width", "video_id", "frame_index")},
                "annotations": [],
            }
        for annotation in content["annotations"]:
            keys = ("iscrowd", "bbox", "area", "segmentation", "track_id")
            kept = {key: annotation[key] for key in keys if key in annotation}
            # From the indices of pixels to continuous coordinates, as detectron2's loader of COCO's format.
            points = [v if k % 3 == 2 else v + 0.5 for k, v in enumerate(annotation["keypoints"])]
            kept |= {"category_id": 0, "bbox_mode": BoxMode.XYWH_ABS, "keypoints": points}
            dicts[annotation["image_id"]]["annotations"].append(kept)
        return list(dicts.values())


def register_video_dataset(kind: str, root: str, prefix: str = "") -> list[str]:
    """
    Registers all splits of a dataset of people in video, in its publisher's layout; files are read on first use.

    The names are ``<prefix>_<split>``: penn_action_{train,test}, bbc_pose_{train,val,test},
    jhmdb_{train,test}_{1,2,3}, jhmdb_sub_{train,test}_{1,2,3} and posetrack18_{train,val}. Evaluation adds PCK@0.2 and
    jitter to AP. Records of images have "video_id" and "frame_index", annotations "track_id". The sigmas of object
    keypoint similarity are those to start from (`suggested_sigmas`): COCO's where a joint is COCO's, else 0.05.

    Args:
        kind: "penn_action", "bbc_pose", "jhmdb" or "posetrack18".
        root: the dataset's folder; see `mrcnn_ext.data.video`.
        prefix: start of the names; default `kind`.

    Returns:
        list[str]: the names.

    Raises:
        ValueError: an unknown kind, or a name that is registered for another folder.
    """
    if kind not in _DATASETS:
        raise ValueError(f"kind must be one of {', '.join(_DATASETS)}, got {kind!r}")
    _, splits, keypoints, skeleton = _DATASETS[kind]
    root = os.path.abspath(root)
    names = []
    for split in splits:
        name = f"{prefix or kind}_{split}"
        names.append(name)
        if name in DatasetCatalog.list():
            there = MetadataCatalog.get(name).get("video_root")
            if there != root:
                raise ValueError(
                    f"dataset {name!r} is already registered for {there}, not {root}: give another prefix"
                )
            continue
        DatasetCatalog.register(name, _VideoLoader(kind, root, split))
        MetadataCatalog.get(name).set(
            video_root=root,
            image_root=root,
            evaluator_type="coco",
            thing_classes=["person"],
            keypoint_names=list(keypoints),
            keypoint_flip_map=[tuple(pair) for pair in mirrored_pairs(keypoints)],
            keypoint_connection_rules=[(a, b, _WHITE) for a, b in skeleton],
            keypoint_oks_sigmas=suggested_sigmas(keypoints),
            pck_thresholds=(0.2,),
        )
    return names


def register_videos_on_disk(root: str) -> list[str]:
    """Registers those of the datasets of `register_video_dataset` whose folders are in `root`; returns the names."""
    names = []
    for kind, (folders, *_) in _DATASETS.items():
        folder = next((f for f in folders if os.path.isdir(os.path.join(root, f))), None)
        if folder is not None:
            names += register_video_dataset(kind, os.path.join(root, folder))
    return names
