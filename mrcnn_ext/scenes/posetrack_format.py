"""PoseTrack18's annotation files: one for each clip, its people with tracks."""

from __future__ import annotations

import numpy as np

from .clip import Clip
from .spec import KEYPOINT_NAMES, SKELETON

# PoseTrack18's keypoints in order. Its ears are in the list and never annotated.
POSETRACK_KEYPOINTS = (
    "nose",
    "head_bottom",
    "head_top",
    *KEYPOINT_NAMES[3:],
)
POSETRACK_SKELETON = (
    *((a, b) for a, b in SKELETON if not {a, b} & {"left_eye", "right_eye", "left_ear", "right_ear"}),
    ("head_top", "nose"),
    ("nose", "head_bottom"),
    *(("head_bottom", f"{side}_shoulder") for side in ("left", "right")),
)


def sequence(clip: Clip, video_id: int, file_names: list[str]) -> dict:
    """
    The content of a sequence's file.

    Args:
        video_id: number of the clip; image ids are `video_id` * 10000 + frame number, annotation ids 100 times that
            and more, as PoseTrack18 numbers them.
        file_names: of the frames, from the dataset's folder.

    Returns:
        dict: "images", "annotations" and "categories". Keypoints have the flag 1 where they are in the image and
        not hidden, else x = y = 0 and the flag 0.
    """
    images, annotations = [], []
    for number, (scene, name) in enumerate(zip(clip.scenes, file_names, strict=True)):
        image_id = video_id * 10000 + number
        images.append(
            {
                "id": image_id,
                "frame_id": image_id,
                "file_name": name,
                "is_labeled": True,
                "nframes": len(clip.scenes),
                "vid_id": f"{video_id:06d}",
                "ignore_regions_x": [],
                "ignore_regions_y": [],
            }
        )
        for instance in scene.instances:
            if instance.keypoints is not None:
                annotation = _person(instance, *scene.image.shape[:2])
                annotation |= {"image_id": image_id, "id": image_id * 100 + instance.track}
                annotations.append(annotation)
    category = {
        "supercategory": "person",
        "id": 1,
        "name": "person",
        "keypoints": list(POSETRACK_KEYPOINTS),
        "skeleton": [[POSETRACK_KEYPOINTS.index(name) + 1 for name in line] for line in POSETRACK_SKELETON],
    }
    return {"images": images, "annotations": annotations, "categories": [category]}


def _person(instance, height: int, width: int) -> dict:
    x0, y0, x1, y1 = instance.box
    head = np.array(instance.head)
    inside = ((head >= 0) & (head < (width, height))).all(1)
    by_name = dict(zip(KEYPOINT_NAMES, instance.keypoints, strict=True))
    seen_face = any(
        by_name[name][2] == 2 for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")
    )
    by_name["head_bottom"] = (*head[0], 2 if inside[0] and seen_face else 0)
    by_name["head_top"] = (*head[1], 2 if inside[1] and seen_face else 0)
    keypoints: list[float] = []
    for name in POSETRACK_KEYPOINTS:
        x, y, v = by_name[name]
        seen = v == 2 and not name.endswith("_ear")
        keypoints += [round(float(x) - 0.5, 1), round(float(y) - 0.5, 1), 1] if seen else [0, 0, 0]
    size = float(np.linalg.norm(head[1] - head[0])) * 0.5
    center = head.mean(0)
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_head": [round(float(v), 1) for v in (*(center - size), 2 * size, 2 * size)],
        "keypoints": keypoints,
        "track_id": int(instance.track),
        "category_id": 1,
        "scores": [],
    }
