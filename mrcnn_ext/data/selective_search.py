"""Object proposals by selective search, for whole datasets: in parallel, resumable, the same every time."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image

from ..files import replacing
from .proposals import read_proposals, write_proposals

__all__ = ["MODES", "check_opencv", "make_proposals", "selective_search"]

MODES = ("fast", "quality")
_CHUNK = 16  # images whose proposals are kept together while the others are made
_VERSION = 1


def check_opencv() -> None:
    """
    Raises:
        ValueError: OpenCV has no selective search; the message says how to get it.
    """
    if not hasattr(getattr(cv2, "ximgproc", None), "segmentation"):
        raise ValueError(
            f"selective search is one of OpenCV's contrib modules, which the OpenCV {cv2.__version__} that is "
            "installed does not have: pip uninstall -y opencv-python-headless opencv-python, then pip install "
            "opencv-contrib-python-headless, which has all of the others' too (the extra mrcnn_ext[proposals])"
        )


def selective_search(image: np.ndarray, mode: str = "fast", limit: int = 2000, size: int = 500) -> np.ndarray:
    """Proposals of selective search (Uijlings et al., *Selective Search for Object Recognition*, IJCV 2013), R-CNN's
    source of them, by OpenCV.

    Args:
        image: (H, W, 3), uint8, BGR.
        mode: "fast" or "quality", as in the paper: the second has more color spaces and thresholds, three times the
            proposals and takes four times as long.
        limit: proposals at most.
        size: longer side in pixels at which the image is searched if it is larger; R-CNN's is 500.

    Returns:
        (N, 4), float32: x0, y0, x1, y1 in pixels of the image; the ones found late in the hierarchy, which are
        larger, are likelier to come first. The same for the same image.
    """
    check_opencv()
    height, width = image.shape[:2]
    factor = min(1.0, size / max(height, width))
    if factor < 1:
        smaller = (max(1, round(width * factor)), max(1, round(height * factor)))
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
    contrib: Any = cv2  # of which the types of the plain package know no ximgproc
    search = contrib.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image))
    (search.switchToSelectiveSearchFast if mode == "fast" else search.switchToSelectiveSearchQuality)()
    _seed_c_library()
    boxes = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)[:limit]
    boxes[:, 2:] += boxes[:, :2]
    scale = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    boxes = np.clip(boxes * scale, 0, [width, height, width, height])
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)].astype(np.float32)


def _seed_c_library() -> None:
    """OpenCV ranks regions by the C library's random numbers, which it does not seed."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, on Windows
        ctypes.CDLL(None).srand(1)


def make_proposals(
    dicts: list[dict],
    output: str | os.PathLike,
    *,
    mode: str = "fast",
    limit: int = 2000,
    size: int = 500,
    workers: int = 1,
    force: bool = False,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> bool:
    """Writes the proposals of a dataset's images as `write_proposals` does.

    What is made so far is kept in ``<output>.parts``, so that the next call goes on after an interruption. The file
    does not depend on ``workers``, nor on where it was interrupted.

    Args:
        dicts: with ``file_name`` and ``image_id``.
        output: the file, ends with .pkl; its folder is made.
        mode, limit, size: as of `selective_search`.
        workers: processes.
        force: replace a file of other images or arguments.
        progress: wraps an iterable for showing progress: called as progress(iterable, total), in images.

    Returns:
        bool: False if ``output`` already holds exactly these proposals and nothing was done.

    Raises:
        ValueError: an argument is out of range, or OpenCV has no selective search.
        FileExistsError: ``output`` has something else, and ``force`` is not set.
    """
    check_opencv()
    output = Path(output)
    if output.suffix != ".pkl":
        raise ValueError(f"a file of proposals ends with .pkl, got {output}")
    if mode not in MODES:
        raise ValueError(f"mode must be {' or '.join(MODES)}, got {mode!r}")
    for name, value in (("limit", limit), ("size", size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not dicts:
        raise ValueError("there are no images to make proposals for")
    about = {
        "method": f"selective search, {mode}",
        "limit": limit,
        "size": size,
        "images": _digest(dicts),
        "version": _VERSION,
    }
    if output.exists() and _is_made(output, about, force):
        return False
    parts = output.with_name(f"{output.name}.parts")
    _begin(parts, about)
    chunks = [range(first, min(first + _CHUNK, len(dicts))) for first in range(0, len(dicts), _CHUNK)]
    missing = [k for k in range(len(chunks)) if not _part(parts, k).is_file()]
    images = [[dicts[i]["file_name"] for i in chunks[k]] for k in missing]
    work = _in_processes(partial(_search_files, mode=mode, limit=limit, size=size), images, workers)
    done = sum(len(chunks[k]) for k in set(range(len(chunks))) - set(missing))
    steps = _written(parts, missing, work)
    for _ in progress(_in_images(steps, done), len(dicts)) if progress else steps:
        pass
    boxes = [array for k in range(len(chunks)) for array in _read_part(_part(parts, k))]
    logits = [-np.arange(len(b), dtype=np.float32) for b in boxes]  # of which the order alone has a meaning
    write_proposals(output, [record["image_id"] for record in dicts], boxes, logits, about)
    shutil.rmtree(parts)
    return True


def _is_made(output: Path, about: dict, force: bool) -> bool:
    try:
        there = read_proposals(output)["about"]
    except ValueError:
        there = None
    if there == about:
        return True
    if force:
        return False
    raise FileExistsError(
        f"{output} exists and has other proposals ({there or 'made by something else'}): choose another file, or "
        "--force (force=True)"
    )


def _digest(dicts):
    """Of what the proposals depend on besides the arguments: ids and files, with their sizes, in their order."""
    digest = hashlib.sha256()
    for record in dicts:
        size = os.path.getsize(record["file_name"])
        digest.update(json.dumps([record["image_id"], os.path.basename(record["file_name"]), size]).encode())
    return digest.hexdigest()[:16]


def _begin(parts: Path, about: dict) -> None:
    """Makes the folder of unfinished work, or takes it up if it is of the same images and arguments."""
    settings = parts / "about.json"
    if settings.is_file() and json.loads(settings.read_text()) == about:
        return
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    with replacing(settings, "w") as file:
        json.dump(about, file)


def _part(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _read_part(path: Path) -> list[np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        ends = np.cumsum(content["counts"])
        return np.split(content["boxes"], ends[:-1])


def _search_files(files, mode, limit, size) -> list[np.ndarray]:
    # As a model sees them: turned as the camera says.
    return [selective_search(read_image(file, "BGR"), mode, limit, size) for file in files]


def _in_processes(function, items, workers):
    """Results in order."""
    if workers == 1 or len(items) < 2:
        yield from map(function, items)
        return
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    threads = cv2.getNumThreads()
    cv2.setNumThreads(
        1
    )  # OpenCV's threads do not survive a fork, and a child looking for them waits for ever
    try:
        context = multiprocessing.get_context(method)
        with context.Pool(min(workers, len(items)), cv2.setNumThreads, (1,)) as pool:
            yield from pool.imap(function, items)
    finally:
        cv2.setNumThreads(threads)


def _written(parts, numbers, results):
    """Keeps each result; gives the number of images in it."""
    for number, boxes in zip(numbers, results, strict=True):
        with replacing(_part(parts, number)) as file:
            counts = np.array([len(b) for b in boxes])
            np.savez(file, counts=counts, boxes=np.concatenate(boxes))
        yield len(boxes)


def _in_images(steps, done):
    """One item for each image."""
    yield from range(done)
    for count in steps:
        yield from range(count)
