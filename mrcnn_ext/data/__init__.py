"""Datasets as people have them: registered, read, checked and described. Their check, reading and repair of COCO files
run without detectron2."""

import os
from importlib.util import find_spec

__all__ = []

if find_spec("detectron2") is not None:
    from .build import build_test_loader, build_train_loader, read_lazily
    from .check import check_dataset
    from .clips import ClipDataset, ClipMapper, build_clip_train_loader
    from .coco_format import register_coco_format
    from .copy_paste import CopyPasteMapper, build_copy_paste_train_loader
    from .loading import get_detection_dataset_dicts, load_dataset
    from .mapper import DatasetMapper
    from .person_crops import CropToBox, PersonCropMapper, get_person_crops, person_crops
    from .register import register_clips, register_scenes
    from .register_video import register_video_dataset, register_videos_on_disk

    __all__ += [
        "ClipDataset",
        "ClipMapper",
        "CopyPasteMapper",
        "CropToBox",
        "DatasetMapper",
        "PersonCropMapper",
        "build_clip_train_loader",
        "build_copy_paste_train_loader",
        "build_test_loader",
        "build_train_loader",
        "check_dataset",
        "get_detection_dataset_dicts",
        "get_person_crops",
        "load_dataset",
        "person_crops",
        "read_lazily",
        "register_coco_format",
        "register_clips",
        "register_scenes",
        "register_video_dataset",
        "register_videos_on_disk",
    ]
    _ROOT = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    register_scenes(os.path.join(_ROOT, "scenes"))
    register_scenes(os.path.join(_ROOT, "scenes_easy"), prefix="scenes_easy")
    register_clips(os.path.join(_ROOT, "clips"))
    register_videos_on_disk(_ROOT)
