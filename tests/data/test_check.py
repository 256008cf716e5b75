"""Every way a dataset can be wrong ends in one error that names the place."""

import copy
import json

import numpy as np
import pytest

pytest.importorskip("detectron2")
import pycocotools.mask as mask_util  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import register_coco_instances  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402
from PIL import Image  # noqa: E402

from mrcnn_ext.data import check_dataset  # noqa: E402

pytestmark = pytest.mark.detectron2

EVERYTHING = {"num_classes": 3, "num_keypoints": 17, "needs_masks": True, "needs_keypoints": True}


@pytest.fixture
def dicts(tmp_path):
    """Two good images of two annotations, one of them a crowd."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    records = []
    for k, name in enumerate(("a.png", "b.jpg")):
        Image.fromarray(pixels).save(tmp_path / name)
        single = {
            "bbox": [10, 10, 20, 15],
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": k,
            "iscrowd": 0,
            "segmentation": [[10, 10, 30, 10, 30, 25]],
            "keypoints": [12.0, 12.0, 2] * 17,
        }
        rle = mask_util.encode(np.asfortranarray(np.ones((40, 60), np.uint8)))
        crowd = {**single, "iscrowd": 1, "segmentation": rle}
        path = str(tmp_path / name)
        records.append(
            {"file_name": path, "image_id": 7 + k, "height": 40, "width": 60, "annotations": [single, crowd]}
        )
    return records


def change(path, value):
    """A function that sets an entry of the first image's first annotation, or of the image."""

    def apply(dicts):
        target = dicts[0]["annotations"][0] if path[0] != "image" else dicts[0]
        if value is KeyError:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return apply


def test_a_good_dataset_is_returned(dicts):
    before = copy.deepcopy(dicts)
    checked = check_dataset(dicts, **EVERYTHING)
    assert [d["image_id"] for d in checked] == [7, 8]
    assert dicts[0]["annotations"][0] == before[0]["annotations"][0]


RLE = mask_util.encode(np.asfortranarray(np.zeros((40, 61), np.uint8)))
GOOD_RLE = mask_util.encode(np.asfortranarray(np.zeros((40, 60), np.uint8)))


@pytest.mark.parametrize(
    "spoil, match",
    [
        (
            change(["category_id"], 3),
            "category_id 3 is out of range: the model has 3 classes, so it must be 0 to 2",
        ),
        (change(["category_id"], -1), "category_id -1 is out of range"),
        (change(["category_id"], "car"), "category_id must be an integer, got 'car'"),
        (change(["bbox"], [10, 10, float("nan"), 5]), "not finite"),
        (change(["bbox"], [10, 10, -4, 5]), "negative width or height"),
        (change(["bbox"], [10, 10, 90, 5]), "lies outside the image of width 60 and height 40"),
        (change(["bbox"], [70, 10, 5, 5]), "lies outside the image of width 60 and height 40"),
        (
            change(["bbox"], [10, 10, 5]),
            r"bbox must have 4 numbers \(5 if rotated, .*\), got \[10.0, 10.0, 5.0\]",
        ),
        (change(["bbox"], [10, None, 5, 5]), "its bbox: None is no number"),
        (
            change(["bbox_mode"], BoxMode.XYWH_REL),
            "bbox_mode must be XYXY_ABS, XYWH_ABS or XYWHA_ABS .*, got XYWH_REL",
        ),
        (change(["segmentation"], [1, 1, 5, 5, 8, 8]), "must be a list of polygons, .* or RLE"),
        (change(["segmentation"], {"size": [40, 60]}), "must have counts"),
        (
            change(["segmentation"], {"size": [40, 60], "counts": [2399]}),
            "add up to 2399 pixels, .* 40 x 60 = 2400",
        ),
        (change(["segmentation"], {"size": [40, 60], "counts": b"P"}), "counts .* cut off"),
        (change(["bbox"], KeyError), "has no bbox"),
        (change(["bbox_mode"], KeyError), "has no bbox_mode"),
        (change(["segmentation"], KeyError), "has no segmentation"),
        (change(["segmentation"], []), "has no segmentation"),
        (change(["segmentation"], [[1, 1, 5, 5, 8, float("inf")]]), "a polygon: inf is not finite"),
        (change(["segmentation"], RLE), r"RLE is of size \(40, 61\), the image is \(40, 60\)"),
        (change(["segmentation"], GOOD_RLE), "set INPUT.MASK_FORMAT to 'bitmask'"),
        (change(["segmentation"], np.zeros((4, 4))), r"mask is of shape \(4, 4\)"),
        (change(["segmentation"], "mask.png"), "must be polygons, RLE or an array, got str"),
        (
            change(["keypoints"], [1.0, 2.0, 2] * 14),
            "has 14 keypoints .42 numbers., but the dataset has 17",
        ),
        (change(["keypoints"], [float("nan"), 2.0, 2] * 17), "its keypoints: nan is not finite"),
    ],
)
def test_a_bad_annotation_is_named(dicts, spoil, match):
    spoil(dicts)
    with pytest.raises(ValueError, match=match) as error:
        check_dataset(dicts, **EVERYTHING)
    message = str(error.value)
    assert "image 7" in message and "a.png" in message and "annotation number 0" in message
    assert "\n" not in message


def test_what_a_model_does_not_use_is_not_required(dicts):
    change(["segmentation"], KeyError)(dicts)
    change(["keypoints"], KeyError)(dicts)
    check_dataset(dicts, num_classes=3)


def test_rle_is_fine_as_bitmask(dicts):
    change(["segmentation"], GOOD_RLE)(dicts)
    check_dataset(dicts, **EVERYTHING, mask_format="bitmask")


def test_an_annotation_id_is_given_where_there_is_one(dicts):
    change(["id"], 4711)(dicts)
    change(["category_id"], 9)(dicts)
    with pytest.raises(ValueError, match="annotation id 4711"):
        check_dataset(dicts, **EVERYTHING)


def test_empty_datasets(dicts):
    with pytest.raises(ValueError, match="it has no images"):
        check_dataset([])
    for record in dicts:
        record["annotations"] = [a for a in record["annotations"] if a["iscrowd"]]
    with pytest.raises(ValueError, match="2 images and no annotation to learn from"):
        check_dataset(dicts)
    check_dataset(dicts, needs_annotations=False)


def test_record_without_size(dicts):
    del dicts[1]["height"]
    with pytest.raises(ValueError, match="image 8 .*b.jpg.*no 'height'"):
        check_dataset(dicts)


def test_image_of_another_size(dicts):
    dicts[1] |= {"height": 60, "width": 60, "annotations": []}
    with pytest.raises(ValueError, match="file has height 40 and width 60, the annotations say"):
        check_dataset(dicts)


def test_turned_by_exif_is_not_another_size(dicts, tmp_path):
    image = Image.open(dicts[1]["file_name"])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    dicts[1] |= {"file_name": str(tmp_path / "turned.jpg"), "height": 60, "width": 40}
    dicts[1]["annotations"] = []
    check_dataset(dicts)


def test_turned_by_exif_with_the_size_before_is_another_size(dicts, tmp_path):
    image = Image.open(dicts[1]["file_name"])
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    dicts[1]["file_name"] = str(tmp_path / "turned.jpg")
    with pytest.raises(
        ValueError, match="height 60 and width 40, turned as its EXIF data say, the annotations"
    ):
        check_dataset(dicts)


def test_sixteen_bits_are_too_many(dicts, tmp_path):
    Image.fromarray(np.full((40, 60), 1000, np.uint16)).save(tmp_path / "deep.png")
    dicts[1]["file_name"] = str(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png.*more than 8 bits a pixel"):
        check_dataset(dicts)


def test_a_few_boxes_of_whole_objects_may_leave_the_image(dicts, caplog):
    dicts[1]["annotations"] *= 4
    change(["bbox"], [-20, 10, 40, 60])(dicts)
    check_dataset(dicts, **EVERYTHING)
    assert "lies outside the image" in caplog.text and "(1 of 10 are like it)" in caplog.text
    for annotation in dicts[1]["annotations"][:2]:
        annotation["bbox"] = [-20, 10, 40, 60]
    with pytest.raises(ValueError, match=r"lies outside the image .* in pixels\? \(9 of 10 are like it\)"):
        check_dataset(dicts, **EVERYTHING)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_truncated_images_are_found(dicts, index, keep):
    path = dicts[index]["file_name"]
    content = open(path, "rb").read()
    open(path, "wb").write(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=f"image {7 + index}.*truncated or damaged"):
        check_dataset(dicts)
    check_dataset(dicts, check_images=False)


def test_bytes_after_the_end_are_no_damage(dicts):
    with open(dicts[1]["file_name"], "ab") as file:
        file.write(b"\0" * 10000)
    check_dataset(dicts)


def test_not_an_image(dicts):
    open(dicts[0]["file_name"], "w").write("<html>404</html>")
    with pytest.raises(ValueError, match="a.png.*is not an image"):
        check_dataset(dicts)


def test_missing_images_are_counted(dicts):
    for record in dicts:
        record["file_name"] += ".gone"
    with pytest.raises(FileNotFoundError, match=r"image 7 .*does not exist.*\(and 1 more like it\)"):
        check_dataset(dicts)


@pytest.fixture
def registered(tmp_path, dicts):
    """The dataset as COCO files, registered; yields its name and the path of its JSON file."""
    name = "test_check_coco"
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for record in dicts:
        image = {k: record[k] for k in ("height", "width")} | {
            "id": record["image_id"],
            "file_name": record["file_name"],
        }
        content["images"].append(image)
        single = {k: v for k, v in record["annotations"][0].items() if k != "bbox_mode"}
        single |= {
            "id": len(content["images"]),
            "image_id": record["image_id"],
            "category_id": 1,
            "area": 300,
        }
        content["annotations"].append(single)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    register_coco_instances(name, {}, str(path), "")
    yield name, path
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_registered_dataset(registered):
    assert len(check_dataset(registered[0], num_classes=1, num_keypoints=17, needs_masks=True)) == 2


def test_an_unknown_name_gets_a_suggestion(registered):
    with pytest.raises(
        ValueError, match="'test_check_cocoa' is not registered: did you mean 'test_check_coco'"
    ):
        check_dataset("test_check_cocoa")


def test_a_name_like_no_other():
    with pytest.raises(ValueError, match="'nowhere' is not registered: register it; there is no such file"):
        check_dataset("nowhere")


def test_a_missing_json_file(registered):
    name, path = registered
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match="'test_check_coco' is not on disk.*instances.json is missing.*README"
    ):
        check_dataset(name)


def test_a_broken_json_file(registered):
    name, path = registered
    path.write_text(path.read_text()[:-30])
    with pytest.raises(
        ValueError, match="'test_check_coco' cannot be read from .*instances.json: JSONDecodeError"
    ):
        check_dataset(name)
