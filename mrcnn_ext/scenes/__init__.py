"""Synthetic street scenes and clips with boxes, masks and keypoints. Needs numpy, OpenCV and pycocotools only."""

from .clip import CLIP_PRESETS, CLIP_VERSION, Clip, ClipPreset, generate_clip, get_clip_preset
from .clip_dataset import clip_of, write_clips
from .dataset import FORMATS, read_meta, scene_of, write_dataset
from .scene import Instance, Scene, generate_scene
from .spec import (
    CATEGORIES,
    CATEGORY_NAMES,
    KEYPOINT_FLIP_MAP,
    KEYPOINT_NAMES,
    PRESETS,
    SKELETON,
    VERSION,
    ScenePreset,
    get_preset,
)

__all__ = [
    "CLIP_PRESETS",
    "CLIP_VERSION",
    "Clip",
    "ClipPreset",
    "clip_of",
    "generate_clip",
    "get_clip_preset",
    "write_clips",
    "CATEGORIES",
    "CATEGORY_NAMES",
    "FORMATS",
    "KEYPOINT_FLIP_MAP",
    "KEYPOINT_NAMES",
    "PRESETS",
    "SKELETON",
    "VERSION",
    "Instance",
    "Scene",
    "ScenePreset",
    "generate_scene",
    "get_preset",
    "read_meta",
    "scene_of",
    "write_dataset",
]
