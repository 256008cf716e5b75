"""BBC Pose: 20 videos of sign language interpreters, 7 joints of the upper body."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..images import image_size
from .content import VideoContent, naming, need, read_mat

__all__ = ["BBC_KEYPOINTS", "BBC_SKELETON", "read_bbc_pose"]

BBC_KEYPOINTS = ("head", *(f"{s}_{p}" for p in ("wrist", "elbow", "shoulder") for s in ("right", "left")))
BBC_SKELETON = (
    *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (("shoulder", "elbow"), ("elbow", "wrist"))),
    ("left_shoulder", "right_shoulder"),
    ("head", "left_shoulder"),
    ("head", "right_shoulder"),
)  # fmt: skip
_LAYOUT = "bbcpose.mat (or code/bbcpose.mat) and the frames 1/1.jpg, 1/2.jpg, ... of each video"
_URL = "https://www.robots.ox.ac.uk/~vgg/data/pose/"
# "Extended BBC Pose" has 72 further videos in the same file, annotated by another method.
_SOURCE = "buehler11"
_SPLITS = ("train", "val", "test")


def read_bbc_pose(root: str, split: str | None = None) -> dict:
    """Reads ``bbcpose.mat``: a struct for each video with "type" (train, val, test), "source", "train_frames" and
    "train_joints" (annotated semi-automatically), "test_frames" and "test_joints" (by hand, where there are).

    Only frames with joints are listed: the others lie between them in the videos' folders, which are numbered as the
    structs. Boxes are those of the joints and a margin, as the dataset has none.

    Args:
        root: folder of the numbered folders of frames and of ``bbcpose.mat``, which may be in a folder of its own.
        split: "train" (10 videos), "val" (5) or "test" (5); default all.

    Returns:
        dict: of a COCO annotation file.

    Raises:
        FileNotFoundError: a file or folder is missing.
        ValueError: an unknown split, or the file is not as above.
    """
    if split not in (None, *_SPLITS):
        raise ValueError(f"BBC Pose has the splits 'train', 'val' and 'test', not {split!r}")
    folder = Path(root)
    candidates = [folder / "bbcpose.mat", *sorted(need(folder, _LAYOUT, _URL).glob("*/bbcpose.mat"))]
    path = next((p for p in candidates if p.is_file()), candidates[0])
    videos = np.ravel(read_mat(need(path, _LAYOUT, _URL), "bbcpose")["bbcpose"])
    fields = videos.dtype.names or ()
    for name in ("type", "train_frames", "train_joints", "test_frames", "test_joints"):
        if name not in fields:
            raise ValueError(
                f"{path}: its structs have no field {name!r}; they have {', '.join(fields) or 'none'}"
            )
    content = VideoContent(BBC_KEYPOINTS, BBC_SKELETON)
    for number, video in enumerate(videos, 1):
        if "source" in fields and _text(video["source"]) not in ("", _SOURCE):
            continue
        kind = _text(video["type"])
        if split is None or kind == split:
            with naming(path, f"BBC Pose: video {number} is not as its structs are"):
                _add(content, folder, path, number, video, "test" if kind == "test" else "train")
    return content.content()


def _text(value) -> str:
    values = np.ravel(value)
    return str(values[0]) if values.size else ""


def _add(content: VideoContent, folder: Path, path: Path, number: int, video, kind: str) -> None:
    frames = np.ravel(video[f"{kind}_frames"]).astype(int)
    joints = np.asarray(video[f"{kind}_joints"], dtype=np.float64)
    if not len(frames):
        return
    if joints.ndim == 2:  # MATLAB drops the last axis of one frame
        joints = joints[:, :, None]
    if joints.shape != (2, len(BBC_KEYPOINTS), len(frames)):
        raise ValueError(
            f"{path}: {kind}_joints of video {number} must be (2, {len(BBC_KEYPOINTS)}, {len(frames)}) for its "
            f"{len(frames)} frames, got {joints.shape}"
        )
    first = need(folder / str(number) / f"{frames[0]}.jpg", _LAYOUT, _URL)
    height, width = image_size(str(first))
    name = _text(video["videoName"]) if "videoName" in video.dtype.names else str(number)
    content.video(name, height, width)
    for k, frame in enumerate(frames):
        x, y = joints[:, :, k] - 1
        placed = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        content.frame(f"{number}/{frame}.jpg", int(frame) - 1)
        content.person(0, None, np.stack([x, y, 2.0 * placed], axis=1))
