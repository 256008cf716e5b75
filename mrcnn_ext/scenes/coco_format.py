"""COCO's annotation files: instances of the eight categories, and person keypoints."""

from __future__ import annotations

import numpy as np

from .masks import encode_rle, mask_to_polygons
from .scene import Scene
from .spec import CATEGORIES, CATEGORY_NAMES, KEYPOINT_NAMES, SKELETON

_SKELETON = [[KEYPOINT_NAMES.index(a) + 1, KEYPOINT_NAMES.index(b) + 1] for a, b in SKELETON]
_FIGURE = {"keypoints": list(KEYPOINT_NAMES), "skeleton": _SKELETON}
FIGURES = ("person", "rider")


def instance_categories() -> list[dict]:
    """The `categories` of instances_*.json: ids 1 to 8, keypoints for person and rider."""
    supercategory = {"person": "human", "rider": "human"}
    return [
        {
            "id": k,
            "name": name,
            "supercategory": supercategory.get(name, "vehicle"),
            **(_FIGURE if name in FIGURES else {}),
        }
        for k, (name, _, _) in enumerate(CATEGORIES, 1)
    ]


def person_categories() -> list[dict]:
    """The `categories` of person_keypoints_*.json."""
    return [{"id": 1, "name": "person", "supercategory": "human", **_FIGURE}]


def scene_annotations(scene: Scene) -> list[dict]:
    """
    The annotations of a scene, nearest last, without `id` and `image_id`.

    Keypoint coordinates are those of the pixel's corner as in COCO: half a pixel less than the scene's.
    """
    annotations = []
    for index, instance in enumerate(scene.instances):
        x0, y0, x1, y1 = instance.box
        mask = scene.instance_map[y0:y1, x0:x1] == index + 1
        if instance.iscrowd:
            segmentation = encode_rle(scene.mask(index))
        else:
            segmentation = mask_to_polygons(mask, (x0, y0))
        keypoints = (
            np.zeros((len(KEYPOINT_NAMES), 3)) if instance.keypoints is None else instance.keypoints.copy()
        )
        seen = keypoints[:, 2] > 0
        keypoints[seen, :2] = np.round(keypoints[seen, :2] - 0.5, 1)
        annotations.append(
            {
                "category_id": CATEGORY_NAMES.index(instance.category) + 1,
                "segmentation": segmentation,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": instance.area,
                "iscrowd": int(instance.iscrowd),
                "keypoints": [int(v) if v == int(v) else float(v) for v in keypoints.reshape(-1)],
                "num_keypoints": int(seen.sum()),
            }
        )
    return annotations


def dataset(info: dict, images: list[dict], annotations: list[list[dict]]) -> dict:
    """
    The content of instances_*.json.

    Args:
        info: the `info` record.
        images: COCO image records; ids in order.
        annotations: per image, what `scene_annotations` gave.
    """
    numbered = [(image["id"], a) for image, group in zip(images, annotations, strict=True) for a in group]
    return {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": [{"id": k, "image_id": image, **a} for k, (image, a) in enumerate(numbered, 1)],
        "categories": instance_categories(),
    }


def person_dataset(instances: dict) -> dict:
    """The content of person_keypoints_*.json, from that of instances_*.json: riders count as persons."""
    figures = {c["id"] for c in instances["categories"] if c["name"] in FIGURES}
    chosen = [{**a, "category_id": 1} for a in instances["annotations"] if a["category_id"] in figures]
    return {**instances, "annotations": chosen, "categories": person_categories()}
