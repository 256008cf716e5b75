"""The base of the examples: one image of 30 x 20 pixels with a person and a car, squares of 10 pixels."""

import copy

from mrcnn_ext.cli.datasets import command

COCO_NAMES = ["nose"] + [
    f"{side}_{part}"
    for part in ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    for side in ("left", "right")
]


def square(number, x):
    return {
        "id": number,
        "image_id": 1,
        "category_id": number,
        "bbox": [x, 2, 10, 10],
        "segmentation": [[x, 2, x + 10, 2, x + 10, 12, x, 12]],
        "area": 100,
        "iscrowd": 0,
    }


def base():
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": 20, "width": 30}],
        "annotations": [square(1, 2), square(2, 15)],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
    }


def with_keypoints(content):
    """17 visible keypoints within each square."""
    content["categories"][0]["keypoints"] = content["categories"][1]["keypoints"] = list(COCO_NAMES)
    for annotation in content["annotations"]:
        x, y = annotation["bbox"][:2]
        annotation["keypoints"] = [v for k in range(17) for v in (x + k % 8, y + k // 2, 2)]
        annotation["num_keypoints"] = 17


def change(**values):
    """An edit of the first annotation."""

    def edit(content):
        content["annotations"][0].update(copy.deepcopy(values))

    return edit


def without(*keys):
    def edit(content):
        for annotation in content["annotations"]:
            for key in keys:
                annotation.pop(key, None)

    return edit


def check_main(arguments):
    """Exit code of `mrcnn-ext datasets check`."""
    try:
        command.main(["check", *arguments], standalone_mode=False)
    except SystemExit as stop:
        return stop.code
    return 0
