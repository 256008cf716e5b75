"""JHMDB and sub-JHMDB: 928 (316) clips of 21 (12) actions, 15 joints of one person, puppet masks, three splits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util

from ..images import image_size
from .content import VideoContent, naming, need, read_mat

__all__ = ["JHMDB_KEYPOINTS", "JHMDB_SKELETON", "read_jhmdb"]

JHMDB_KEYPOINTS = (
    "neck",
    "belly",
    "face",
    *(f"{s}_{p}" for p in ("shoulder", "hip", "elbow", "knee", "wrist", "ankle") for s in ("right", "left")),
)
JHMDB_SKELETON = (
    *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"),
    )),
    ("face", "neck"),
    ("neck", "belly"),
    *((a, f"{s}_{b}") for s in ("left", "right") for a, b in (("neck", "shoulder"), ("belly", "hip"))),
)  # fmt: skip
_LAYOUT = (
    "Rename_Images/ACTION/CLIP/00001.png, joint_positions/ACTION/CLIP/joint_positions.mat, "
    "splits/ACTION_test_split1.txt (sub_splits/ACTION_test_split_1.txt) and, for masks, "
    "puppet_mask/ACTION/CLIP/puppet_mask.mat"
)
_URL = "http://jhmdb.is.tue.mpg.de/dataset"
_SPLIT = re.compile(r"(sub_)?(train|test)_([123])")


def read_jhmdb(root: str, split: str | None = None) -> dict:
    """Reads ``joint_positions.mat`` of every clip ("pos_img", (2, 15, frames)) and, where they are on disk, its
    ``puppet_mask.mat`` ("part_mask", (height, width, frames)) as masks, which give the boxes.

    Args:
        root: the folder with ``Rename_Images`` and ``joint_positions``.
        split: "train_1" to "train_3" and "test_1" to "test_3"; "sub_train_1", ... of sub-JHMDB, in which whole bodies
            are in view. Default all of JHMDB.

    Returns:
        dict: of a COCO annotation file; videos have "action".

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an unknown split, or a file is not as above.
    """
    match = _SPLIT.fullmatch(split or "")
    if split is not None and not match:
        raise ValueError(
            f"JHMDB has the splits 'train_1' to 'train_3' and 'test_1' to 'test_3', and the same with 'sub_' before "
            f"for sub-JHMDB, not {split!r}"
        )
    folder = Path(root)
    need(folder / "joint_positions", _LAYOUT, _URL)
    need(folder / "Rename_Images", _LAYOUT, _URL)
    if match:
        clips = _clips_of_split(folder, bool(match[1]), match[2], match[3])
    else:
        clips = sorted(
            (p.parent.parent.name, p.parent.name)
            for p in (folder / "joint_positions").glob("*/*/joint_positions.mat")
        )
    content = VideoContent(JHMDB_KEYPOINTS, JHMDB_SKELETON)
    for action, clip in clips:
        _add(content, folder, action, clip)
    return content.content()


def _clips_of_split(folder: Path, sub: bool, part: str, number: str) -> list[tuple[str, str]]:
    lists = folder / ("sub_splits" if sub else "splits")
    ending = f"_test_split_{number}.txt" if sub else f"_test_split{number}.txt"
    files = sorted(need(lists, _LAYOUT, _URL).glob(f"*{ending}"))
    if not files:
        raise FileNotFoundError(f"{lists}: there are no files *{ending} in it. The layout is {_LAYOUT}")
    clips = []
    for path in files:
        action = path.name[: -len(ending)]
        for line in path.read_text().splitlines():
            if not line.strip():
                continue
            name, _, kind = line.strip().rpartition(" ")
            if kind not in ("0", "1", "2") or not name:
                raise ValueError(
                    f"{path}: a line must be 'CLIP.avi 1' (train) or 'CLIP.avi 2' (test), got {line!r}"
                )
            if kind == ("1" if part == "train" else "2"):
                clips.append((action, name.strip().removesuffix(".avi")))
    return sorted(clips)


def _add(content: VideoContent, folder: Path, action: str, clip: str) -> None:
    path = need(folder / "joint_positions" / action / clip / "joint_positions.mat", _LAYOUT, _URL)
    with naming(path, "the joints of a clip of JHMDB"):
        joints = np.asarray(read_mat(path, "pos_img")["pos_img"], dtype=np.float64)
    if joints.ndim == 2:  # MATLAB drops the last axis of one frame
        joints = joints[:, :, None]
    if joints.ndim != 3 or joints.shape[:2] != (2, len(JHMDB_KEYPOINTS)):
        raise ValueError(f"{path}: pos_img must be (2, {len(JHMDB_KEYPOINTS)}, frames), got {joints.shape}")
    frames = joints.shape[2]
    first = need(folder / "Rename_Images" / action / clip / "00001.png", _LAYOUT, _URL)
    height, width = image_size(str(first))
    masks = _masks(folder / "puppet_mask" / action / clip / "puppet_mask.mat", height, width)
    content.video(f"{action}/{clip}", height, width, action=action)
    for k in range(frames):
        x, y = joints[:, :, k] - 1
        placed = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        content.frame(f"Rename_Images/{action}/{clip}/{k + 1:05d}.png", k)
        box, other = None, {}
        if masks is not None and k < masks.shape[2] and masks[:, :, k].any():
            rle = mask_util.encode(np.asfortranarray(masks[:, :, k] > 0, dtype=np.uint8))
            box = [float(v) for v in mask_util.toBbox(rle)]
            other = {
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                "area": float(mask_util.area(rle)),
            }
        content.person(0, box, np.stack([x, y, 2.0 * placed], axis=1), **other)


def _masks(path: Path, height: int, width: int) -> np.ndarray | None:
    if not path.is_file():
        return None
    masks = np.asarray(read_mat(path, "part_mask")["part_mask"])
    if masks.ndim == 2:
        masks = masks[:, :, None]
    if masks.shape[:2] != (height, width):
        raise ValueError(f"{path}: part_mask must be ({height}, {width}, frames), got {masks.shape}")
    return masks
