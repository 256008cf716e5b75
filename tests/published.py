"""Small datasets in the archives and formats of COCO 2017 and Cityscapes, drawn by the scenes."""

import io
import json
import zipfile
from pathlib import Path

import cv2

from mrcnn_ext.data.prepare import CITYSCAPES, COCO_2017
from mrcnn_ext.scenes import get_preset, write_dataset

PRESET = get_preset("easy", height=96, width=128, size=(24, 0.95), empty=0.0, crowd=0.2)
_COCO_IDS = {
    "person": 1, "rider": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "train": 7, "truck": 8,
}  # fmt: skip


def coco_archives(folder: Path, num_train=6, num_val=4):
    """Writes train2017.zip, val2017.zip and annotations_trainval2017.zip; returns the plan that expects them."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    scenes = folder / ".scenes"
    write_dataset(scenes, PRESET, num_train, num_val, seed=1, formats=["coco"])
    things = [
        {"id": c["id"], "name": c["name"], "supercategory": "x"} for c in COCO_CATEGORIES if c["isthing"]
    ]
    counts = {}
    with zipfile.ZipFile(folder / "annotations_trainval2017.zip", "w") as annotations:
        for split, first in (("train", 100), ("val", 700)):
            with zipfile.ZipFile(folder / f"{split}2017.zip", "w") as images:
                images.writestr(f"{split}2017/", "")
                for kind in ("instances", "person_keypoints"):
                    content = json.loads((scenes / "annotations" / f"{kind}_{split}.json").read_text())
                    ids = {image["id"]: first + 7 * image["id"] for image in content["images"]}
                    for image in content["images"]:
                        path = scenes / image["file_name"]
                        image["id"] = ids[image["id"]]
                        image["file_name"] = f"{image['id']:012d}.jpg"
                        if kind == "instances":
                            jpeg = cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes()
                            images.writestr(f"{split}2017/{image['file_name']}", jpeg)
                    names = {c["id"]: c["name"] for c in content["categories"]}
                    for annotation in content["annotations"]:
                        annotation["image_id"] = ids[annotation["image_id"]]
                        if kind == "instances":
                            annotation["category_id"] = _COCO_IDS[names[annotation["category_id"]]]
                            del annotation["keypoints"], annotation["num_keypoints"]
                    if kind == "instances":
                        content["categories"] = things
                    annotations.writestr(f"annotations/{kind}_{split}2017.json", json.dumps(content))
                    counts |= {
                        f"{kind}_{split}2017_images": len(content["images"]),
                        f"{kind}_{split}2017_annotations": len(content["annotations"]),
                    }
    return COCO_2017.only(train2017=num_train, val2017=num_val, **counts)


def cityscapes_archives(folder: Path, num_train=4, num_val=3):
    """Writes leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip; returns the plan that expects them."""
    scenes = folder / ".scenes"
    write_dataset(scenes, PRESET, num_train, num_val, seed=2, formats=["cityscapes"])
    for kind in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(folder / f"{kind}_trainvaltest.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name in ("README", "license.txt"):
                archive.writestr(name, "as in both archives")
            for path in sorted((scenes / kind).rglob("*.*")):
                archive.write(path, path.relative_to(scenes))
    parts = {f"{kind}_{split}": n for kind in ("leftImg8bit", "gtFine") for split, n in
             (("train", num_train), ("val", num_val), ("test", 0))}  # fmt: skip
    return CITYSCAPES.only(**parts)


def damaged(path: Path, member: str):
    """Changes a byte of a member's content, which is stored."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    content = bytearray(path.read_bytes())
    start = io.BytesIO(content)
    start.seek(info.header_offset + 26)
    skip = int.from_bytes(start.read(2), "little") + int.from_bytes(start.read(2), "little")
    content[info.header_offset + 30 + skip + info.compress_size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
