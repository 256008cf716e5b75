"""Writes a whole dataset of scenes, in COCO's and Cityscapes' layouts, with one set of images for both."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2

from . import cityscapes_format, coco_format
from .scene import generate_scene
from .spec import VERSION, ScenePreset, get_preset

FORMATS = ("coco", "cityscapes")
META_FILE = "scenes.json"
# Scene index of a split's first image: splits share no scene, and a longer split begins like a shorter one.
FIRST_INDEX = {"train": 0, "val": 1_000_000_000}


def scene_of(preset: ScenePreset, seed: int, split: str, index: int):
    """The scene written as image `index` (from 0) of a split."""
    return generate_scene(preset, seed, FIRST_INDEX[split] + index)


def write_dataset(
    root,
    preset: str | ScenePreset = "street",
    num_train: int = 400,
    num_val: int = 100,
    seed: int = 0,
    workers: int = 1,
    formats: Iterable[str] = FORMATS,
    force: bool = False,
    progress: Callable[[Iterable, int, str], Iterable] | None = None,
) -> bool:
    """
    Writes a dataset under `root`. It appears complete or not at all; the bytes depend on the preset, the
    counts, the seed and the formats alone, not on `workers`.

    Args:
        root: folder to create.
        preset: a name or a `ScenePreset`.
        num_train, num_val: images of the two splits.
        seed: any non-negative integer.
        workers: processes that draw.
        formats: "coco" and/or "cityscapes".
        force: replace what is there, if it is a dataset of other arguments.
        progress: wraps an iterable for showing progress: called as progress(iterable, total, description).

    Returns:
        bool: False if `root` already holds exactly this dataset and nothing was done.

    Raises:
        ValueError: an argument out of range.
        FileExistsError: `root` holds something else, and `force` is not set.
    """
    preset = get_preset(preset) if isinstance(preset, str) else preset
    formats = [f for f in FORMATS if f in set(_checked(formats))]
    check_counts(num_train, num_val, seed, workers)
    meta = {
        "generator": "mrcnn_ext.scenes",
        "version": VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
        "formats": formats,
        "preset": dataclasses.asdict(preset),
    }

    def write(building):
        for split, count in (("train", num_train), ("val", num_val)):
            _write_split(building, preset, seed, split, count, workers, formats, progress)

    return write_folder(root, meta, force, write)


def check_counts(num_train: int, num_val: int, seed: int, workers: int) -> None:
    """
    Raises:
        ValueError: an argument of `write_dataset` out of range.
    """
    for name, value, least in (
        ("num_train", num_train, 0),
        ("num_val", num_val, 0),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if num_train + num_val < 1:
        raise ValueError("num_train and num_val are both 0: there is nothing to write")


def write_folder(root, meta: dict, force: bool, write: Callable[[Path], None]) -> bool:
    """
    Writes a folder that appears complete or not at all, with a record of what it was made of.

    Args:
        root: folder to create.
        meta: the record, of what JSON can hold.
        force: replace a folder of another record.
        write: fills the folder it is called with.

    Returns:
        bool: False if `root` already holds a folder of this record and nothing was done.

    Raises:
        FileExistsError: `root` holds something else, and `force` is not set.
    """
    meta = json.loads(json.dumps(meta))
    root = Path(root).resolve()  # what a link points to is what is replaced
    if root.exists() and not _may_write(root, meta, force):
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        write(building)
        write_json(building / META_FILE, meta, indent=2)
        building.chmod(0o755)
        if root.exists():
            shutil.rmtree(root)
        building.rename(root)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def read_meta(root) -> dict | None:
    """What the dataset under `root` was made of, None if there is none."""
    path = Path(root) / META_FILE
    return json.loads(path.read_text()) if path.is_file() else None


def _checked(formats: Iterable[str]) -> list[str]:
    formats = list(formats)
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise ValueError(f"formats must name at least one of {FORMATS}, got {formats}")
    return formats


def _may_write(root: Path, meta: dict, force: bool) -> bool:
    there = read_meta(root)
    if there == meta:
        return False
    if there is None:
        if root.is_dir() and not any(root.iterdir()):
            return True
        # Not even with force: the folder is not ours.
        raise FileExistsError(
            f"{root} exists and is not a dataset of scenes (it has no {META_FILE}): choose another folder"
        )
    if force:
        return True
    differing = {k: (there.get(k), v) for k, v in meta.items() if there.get(k) != v and k != "preset"}
    if there.get("preset") != meta["preset"]:
        old, new = there.get("preset") or {}, meta["preset"]
        differing |= {f"preset.{k}": (old.get(k), v) for k, v in new.items() if old.get(k) != v}
    listed = "; ".join(f"{k} is {old!r}, asked for {new!r}" for k, (old, new) in differing.items())
    raise FileExistsError(
        f"{root} holds another dataset ({listed}): choose another folder, or --force (force=True)"
    )


def _write_split(root, preset, seed, split, count, workers, formats, progress) -> None:
    for kind in ("leftImg8bit", "gtFine") if "cityscapes" in formats else ("leftImg8bit",):
        for index in range(count):
            (root / kind / split / cityscapes_format.image_stem(split, index)[0]).mkdir(
                parents=True, exist_ok=True
            )
    task = functools.partial(_write_image, str(root), preset, seed, split, "cityscapes" in formats)
    results = map_indices(task, count, workers, split, progress)
    if "coco" in formats:
        info = {
            "description": f"synthetic street scenes, preset {preset.name}, split {split}, seed {seed}",
            "version": str(VERSION),
            "preset": dataclasses.asdict(preset),
            "seed": seed,
        }
        images = [
            {"id": k, "file_name": name, "height": preset.height, "width": preset.width}
            for k, (name, _) in enumerate(results, 1)
        ]
        instances = coco_format.dataset(info, images, [annotations for _, annotations in results])
        (root / "annotations").mkdir(exist_ok=True)
        write_json(root / "annotations" / f"instances_{split}.json", instances)
        write_json(
            root / "annotations" / f"person_keypoints_{split}.json", coco_format.person_dataset(instances)
        )


def map_indices(task: Callable, count: int, workers: int, split: str, progress=None) -> list:
    """What `task` gives for 0 to `count` - 1, in order, from as many processes; `progress` as in `write_dataset`."""
    with contextlib.ExitStack() as stack:
        if workers > 1 and count > 1:
            # fork where there is one: a fresh interpreter in every worker would import torch for nothing.
            method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
            # OpenCV's threads do not survive a fork, and a child looking for them waits for ever.
            stack.callback(cv2.setNumThreads, cv2.getNumThreads())
            cv2.setNumThreads(1)
            context = multiprocessing.get_context(method)
            pool = stack.enter_context(context.Pool(min(workers, count), cv2.setNumThreads, (1,)))
            results = pool.imap(task, range(count), chunksize=2)
        else:
            results = map(task, range(count))
        return list(progress(results, count, split) if progress else results)


def _write_image(root: str, preset, seed, split, cityscapes, index) -> tuple[str, list[dict]]:
    """Draws and writes one scene; returns its file name under `root` and its COCO annotations."""
    scene = scene_of(preset, seed, split, index)
    city, stem = cityscapes_format.image_stem(split, index)
    name = f"leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png"
    _write_png(os.path.join(root, name), scene.image[:, :, ::-1])
    if cityscapes:
        base = os.path.join(root, "gtFine", split, city, f"{stem}_gtFine_")
        _write_png(base + "instanceIds.png", cityscapes_format.instance_ids(scene))
        _write_png(base + "labelIds.png", cityscapes_format.label_ids(scene))
        write_json(Path(base + "polygons.json"), cityscapes_format.polygons(scene))
    return name, coco_format.scene_annotations(scene)


def _write_png(path: str, image) -> None:
    if not cv2.imwrite(path, image):
        raise OSError(f"could not write {path}")


def write_json(path: Path, content: dict, indent: int | None = None) -> None:
    """Writes JSON without blanks, or indented."""
    path.write_text(json.dumps(content, indent=indent, separators=None if indent else (",", ":")))
