"""PoseTrack18: several people with tracks, 17 joints, of which the ears are never annotated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...scenes.posetrack_format import POSETRACK_KEYPOINTS, POSETRACK_SKELETON
from ..images import image_size
from .content import VideoContent, naming, need

__all__ = ["POSETRACK_KEYPOINTS", "POSETRACK_SKELETON", "read_posetrack18"]

_LAYOUT = "annotations/train/*.json (and val/) and images/train/SEQUENCE/000000.jpg"
_URL = "https://posetrack.net"


def read_posetrack18(root: str, split: str | None = None) -> dict:
    """Reads ``annotations/<split>/<sequence>.json``; frames that nobody has labelled are left out.

    Keypoints have the flag 1 where they are annotated, which becomes v = 2. "ignore_regions" become crowd regions.

    Args:
        root: folder that the file names of the images start from, with ``annotations/``. ``posetrack/`` of
            `mrcnn_ext.scenes.write_clips` in place of ``annotations/`` will do.
        split: "train", "val", ...: a folder of ``annotations/``; default all.

    Returns:
        dict: of a COCO annotation file; with a split, image ids are PoseTrack's.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: a file is not as above.
    """
    folder = Path(root)
    base = next((p for p in (folder / "annotations", folder / "posetrack") if _has_sequences(p)), None)
    base = base or need(folder / "annotations", _LAYOUT, _URL)
    if split is not None:
        need(base / split, _LAYOUT, _URL)
    files = sorted(base.glob(f"{split or '*'}/*.json"))
    if not files:
        raise FileNotFoundError(
            f"{base / (split or '')}: there are no *.json files in it. The layout is {_LAYOUT}"
        )
    content = VideoContent(POSETRACK_KEYPOINTS, POSETRACK_SKELETON)
    for path in files:
        _add(content, folder, path, split is not None)
    return content.content()


def _has_sequences(base: Path) -> bool:
    return next(base.glob("*/*.json"), None) is not None


def _add(content: VideoContent, folder: Path, path: Path, keep_ids: bool) -> None:
    with naming(
        path, "a sequence of PoseTrack18, which has images, annotations and categories with keypoints"
    ):
        _add_sequence(content, folder, path, json.loads(path.read_text()), keep_ids)


def _add_sequence(content: VideoContent, folder: Path, path: Path, sequence: dict, keep_ids: bool) -> None:
    images, annotations = sequence["images"], sequence.get("annotations", [])
    names = next(c["keypoints"] for c in sequence["categories"] if c.get("keypoints"))
    if tuple(names) != POSETRACK_KEYPOINTS:
        raise ValueError(f"its keypoints are {', '.join(names[:4])}, ..., not PoseTrack18's 17")
    labelled = [image for image in images if image.get("is_labeled", True)]
    if not labelled:
        return
    first = need(folder / labelled[0]["file_name"], _LAYOUT, _URL)
    height, width = image_size(str(first))
    content.video(path.stem, height, width)
    people: dict = {}
    for annotation in annotations:
        people.setdefault(annotation["image_id"], []).append(annotation)
    start = min(image["id"] for image in images)
    for image in labelled:
        content.frame(image["file_name"], image["id"] - start, image["id"] if keep_ids else None)
        for annotation in people.get(image["id"], ()):
            points = np.reshape(annotation["keypoints"], (-1, 3)).astype(np.float64)
            points[:, 2] = 2 * (points[:, 2] > 0)
            bbox = annotation.get("bbox")
            content.person(annotation["track_id"], bbox if bbox and min(bbox[2:]) > 0 else None, points)
        regions = zip(image.get("ignore_regions_x", ()), image.get("ignore_regions_y", ()), strict=True)
        for xs, ys in regions:
            if len(xs) >= 3:
                content.region(np.stack([xs, ys], axis=1).ravel().tolist())
