"""Cityscapes' ground truth of a scene: instance ids, label ids and polygons."""

from __future__ import annotations

import cv2
import numpy as np

from .masks import mask_to_closed_outline
from .scene import Scene
from .spec import LABEL_IDS, STUFF

# Stuff polygons are drawn in this order, each over the ones before.
_STUFF_ORDER = (
    "sky",
    "building",
    "terrain",
    "sidewalk",
    "road",
    "rail track",
    "vegetation",
    "pole",
    "traffic light",
    "traffic sign",
    "static",
)
_CITIES = {"train": ("aldorf", "brenstadt", "castelmor"), "val": ("dunhaven",)}


def image_stem(split: str, index: int) -> tuple[str, str]:
    """City and file stem of an image: Cityscapes' `city_sequence_frame`."""
    cities = _CITIES.get(split, (split,))
    city = cities[index % len(cities)]
    return city, f"{city}_{index:06d}_000019"


def label_ids(scene: Scene) -> np.ndarray:
    """(H, W) uint8 label ids."""
    table = np.array([0] + [LABEL_IDS[i.category] for i in scene.instances], np.uint8)
    return np.where(scene.instance_map > 0, table[scene.instance_map], scene.labels)


def instance_ids(scene: Scene) -> np.ndarray:
    """(H, W) uint16: label id * 1000 + a running number for instances, the label id for crowds and stuff."""
    counts: dict[str, int] = {}
    table = [0]
    for instance in scene.instances:
        label = LABEL_IDS[instance.category]
        if instance.iscrowd:
            table.append(label)
            continue
        number = counts.get(instance.category, 0)
        counts[instance.category] = number + 1
        table.append(label * 1000 + number)
    return np.where(
        scene.instance_map > 0, np.array(table, np.uint16)[scene.instance_map], scene.labels.astype(np.uint16)
    )


def polygons(scene: Scene) -> dict:
    """
    The content of *_gtFine_polygons.json: stuff first, then instances from far to near, crowds as "...group".

    The pixels of the PNG files are exact; an outline has no holes, so what is seen through one (a street
    between two legs) belongs to the instance in the polygons alone.
    """
    objects = []
    stuff = np.where(scene.instance_map > 0, 0, scene.labels).astype(np.uint8)
    for name in _STUFF_ORDER:
        count, pieces, stats, _ = cv2.connectedComponentsWithStats((stuff == STUFF[name]).astype(np.uint8))
        for k in range(1, count):
            x, y, w, h, area = (int(v) for v in stats[k])
            if area >= 12:
                outline = mask_to_closed_outline(pieces[y : y + h, x : x + w] == k, (x, y))
                objects.append({"label": name, "polygon": outline})
    for index, instance in enumerate(scene.instances):
        x0, y0, x1, y1 = instance.box
        outline = mask_to_closed_outline(scene.instance_map[y0:y1, x0:x1] == index + 1, (x0, y0))
        objects.append(
            {"label": instance.category + ("group" if instance.iscrowd else ""), "polygon": outline}
        )
    h, w = scene.labels.shape
    return {"imgHeight": h, "imgWidth": w, "objects": objects}
