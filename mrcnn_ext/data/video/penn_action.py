"""Penn Action: 2326 sequences of 15 activities, 13 joints of one person."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .content import VideoContent, naming, need, read_mat

__all__ = ["PENN_KEYPOINTS", "PENN_SKELETON", "read_penn_action"]

PENN_KEYPOINTS = (
    "head",
    *(f"{s}_{p}" for p in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle") for s in ("left", "right")),
)
PENN_SKELETON = (
    *((f"{s}_{a}", f"{s}_{b}") for s in ("left", "right") for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("shoulder", "hip"), ("hip", "knee"), ("knee", "ankle"),
    )),
    ("left_shoulder", "right_shoulder"),
    ("left_hip", "right_hip"),
    ("head", "left_shoulder"),
    ("head", "right_shoulder"),
)  # fmt: skip
_LAYOUT = "Penn_Action/labels/0001.mat and Penn_Action/frames/0001/000001.jpg"
_URL = "http://dreamdragon.github.io/PennAction/"


def read_penn_action(root: str, split: str | None = None) -> dict:
    """Reads ``labels/<sequence>.mat`` (x, y, visibility, bbox, dimensions, train, action) and the names of the frames.

    Joints that are marked as not visible get v = 1, occluded, where they have a place in the image, else 0. MATLAB's
    first pixel is 1, COCO's 0.

    Args:
        root: the folder ``Penn_Action``.
        split: "train" or "test", the publisher's; default all.

    Returns:
        dict: of a COCO annotation file; videos have "action", images the names ``frames/<sequence>/<frame>.jpg``.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: an unknown split, or a file is not as above.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"Penn Action has the splits 'train' and 'test', not {split!r}")
    folder = Path(root)
    need(folder / "frames", _LAYOUT, _URL)
    files = sorted(need(folder / "labels", _LAYOUT, _URL).glob("*.mat"))
    if not files:
        raise FileNotFoundError(f"{folder / 'labels'}: there are no *.mat files in it; from {_URL}")
    content = VideoContent(PENN_KEYPOINTS, PENN_SKELETON)
    for path in files:
        mat = read_mat(path, "x", "y", "visibility", "train", "dimensions")
        with naming(path, "the labels of a sequence of Penn Action"):
            in_train = float(np.ravel(mat["train"])[0]) > 0
            if split is None or in_train == (split == "train"):
                _add(content, path, mat)
    return content.content()


def _add(content: VideoContent, path: Path, mat: dict) -> None:
    height, width, frames = (int(v) for v in np.ravel(mat["dimensions"])[:3])
    x, y, seen = (np.asarray(mat[key], dtype=np.float64) for key in ("x", "y", "visibility"))
    if x.shape != (frames, len(PENN_KEYPOINTS)) or not x.shape == y.shape == seen.shape:
        raise ValueError(
            f"{path}: x, y and visibility must be ({frames}, {len(PENN_KEYPOINTS)}) for its {frames} frames, got "
            f"{x.shape}, {y.shape} and {seen.shape}"
        )
    boxes = np.asarray(mat.get("bbox", np.zeros((0, 4))), dtype=np.float64).reshape(-1, 4)
    action = str(np.ravel(mat["action"])[0]) if "action" in mat else ""
    content.video(path.stem, height, width, action=action)
    points = np.stack([x - 1, y - 1, np.where(seen > 0, 2.0, 1.0)], axis=2)
    # Joints nobody could place are at (1, 1) or beyond the image.
    inside = (
        (points[..., 0] >= 0) & (points[..., 0] < width) & (points[..., 1] >= 0) & (points[..., 1] < height)
    )
    placed = inside & ~((points[..., 0] == 0) & (points[..., 1] == 0))
    points[..., 2] *= placed
    for index in range(frames):
        content.frame(f"frames/{path.stem}/{index + 1:06d}.jpg", index)
        # Some sequences have fewer boxes than frames.
        box = None
        if index < len(boxes):
            x0, y0, x1, y1 = boxes[index]
            if x1 > x0 and y1 > y0:
                box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
        content.person(0, box, points[index])
