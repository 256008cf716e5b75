"""Writes a whole dataset of clips: frames as images, COCO's annotation files with tracks, PoseTrack's per clip."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2

from . import coco_format, posetrack_format
from .clip import CLIP_VERSION, Clip, ClipPreset, generate_clip, get_clip_preset
from .dataset import FIRST_INDEX, check_counts, map_indices, write_folder, write_json

_JPEG_QUALITY = 95


def clip_of(preset: ClipPreset, seed: int, split: str, index: int) -> Clip:
    """The clip written as number `index` (from 0) of a split."""
    return generate_clip(preset, seed, FIRST_INDEX[split] + index)


def write_clips(
    root,
    preset: str | ClipPreset = "clips",
    num_train: int = 200,
    num_val: int = 50,
    seed: int = 0,
    workers: int = 1,
    force: bool = False,
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> bool:
    """
    Writes a dataset of clips under `root`. It appears complete or not at all; the bytes depend on the preset, the
    counts and the seed alone, not on `workers`.

    ``frames/<split>/<clip>/<frame>.jpg`` are the frames. ``annotations/instances_<split>.json`` (eight categories)
    and ``annotations/person_keypoints_<split>.json`` (persons and riders, as "person") are COCO annotation files with
    TAO's additions: a list of "videos" ("id", "name", "width", "height", "length", "frame_rate" and the clip's
    "conditions") and of "tracks", "video_id" and "frame_index" (from 0) with each image, "video_id" and "track_id"
    with each annotation, which also has "visible", the fraction of it that nothing hides. Keypoints that are hidden
    have v = 1, those that are seen v = 2. ``posetrack/<split>/<clip>.json`` are the same people as PoseTrack18 has
    them.

    Args:
        root: folder to create.
        preset: a name or a `ClipPreset`; `get_clip_preset(name, frames=16, height=256, ...)` changes one.
        num_train, num_val: clips of the two splits.
        seed: any non-negative integer.
        workers: processes that draw.
        force: replace what is there, if it is a dataset of other arguments.
        progress: wraps an iterable for showing progress: called as progress(iterable, total, description).

    Returns:
        bool: False if `root` already holds exactly this dataset and nothing was done.

    Raises:
        ValueError: an argument out of range.
        FileExistsError: `root` holds something else, and `force` is not set.
    """
    preset = get_clip_preset(preset) if isinstance(preset, str) else preset
    check_counts(num_train, num_val, seed, workers)
    meta = {
        "generator": "mrcnn_ext.scenes.clips",
        "version": CLIP_VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "preset": dataclasses.asdict(preset),
    }

    def write(building: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            _write_split(building, preset, seed, split, count, workers, progress)

    return write_folder(root, meta, force, write)


def _write_split(root: Path, preset, seed, split, count, workers, progress) -> None:
    for index in range(count):
        (root / _clip_folder(split, index)).mkdir(parents=True)
    (root / "posetrack" / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    task = functools.partial(_write_clip, str(root), preset, seed, split)
    results = map_indices(task, count, workers, split, progress)
    info = {
        "description": f"synthetic clips, preset {preset.name}, split {split}, seed {seed}",
        "version": str(CLIP_VERSION),
        "preset": dataclasses.asdict(preset),
        "seed": seed,
    }
    videos, images, groups, tracks = [], [], [], {}
    for number, (conditions, clip_images, clip_groups) in enumerate(results, 1):
        videos.append(
            {
                "id": number,
                "name": _clip_folder(split, number - 1),
                "width": preset.width,
                "height": preset.height,
                "length": preset.frames,
                "frame_rate": preset.rate,
                "conditions": conditions,
            }
        )
        for image, group in zip(clip_images, clip_groups, strict=True):
            images.append({"id": len(images) + 1, "video_id": number, **image})
            for annotation in group:
                # An actor's number within the clip becomes one that is its own in the whole file.
                key = (number, annotation.pop("actor"))
                track = tracks.setdefault(
                    key,
                    {"id": len(tracks) + 1, "category_id": annotation["category_id"], "video_id": number},
                )
                annotation |= {"video_id": number, "track_id": track["id"]}
            groups.append(group)
    instances = coco_format.dataset(info, images, groups)
    instances |= {"videos": videos, "tracks": list(tracks.values())}
    persons = coco_format.person_dataset(instances)
    there = {a["track_id"] for a in persons["annotations"]}
    persons["tracks"] = [{**t, "category_id": 1} for t in persons["tracks"] if t["id"] in there]
    write_json(root / "annotations" / f"instances_{split}.json", instances)
    write_json(root / "annotations" / f"person_keypoints_{split}.json", persons)


def _clip_folder(split: str, index: int) -> str:
    return f"frames/{split}/{index:05d}"


def _write_clip(root: str, preset, seed, split, index) -> tuple[dict, list[dict], list[list[dict]]]:
    """Draws and writes one clip; returns its conditions, its image records and their annotations."""
    clip = clip_of(preset, seed, split, index)
    folder = _clip_folder(split, index)
    images, groups = [], []
    for number, scene in enumerate(clip.scenes):
        name = f"{folder}/{number:06d}.jpg"
        quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        if not cv2.imwrite(os.path.join(root, name), scene.image[:, :, ::-1], quality):
            raise OSError(f"could not write {os.path.join(root, name)}")
        images.append(
            {"file_name": name, "height": preset.height, "width": preset.width, "frame_index": number}
        )
        annotations = coco_format.scene_annotations(scene)
        for annotation, instance in zip(annotations, scene.instances, strict=True):
            annotation |= {"actor": instance.track, "visible": round(float(instance.visible), 4)}
        groups.append(annotations)
    content = posetrack_format.sequence(clip, index + 1, [image["file_name"] for image in images])
    write_json(Path(root) / "posetrack" / split / f"{index:05d}.json", content)
    return clip.conditions, images, groups
