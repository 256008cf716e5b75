"""The check compares what belongs together, counts, and tells all of it at once, by ids."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("detectron2")

import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mrcnn_ext.data import DatasetMapper, check_dataset, load_dataset
from mrcnn_ext.data.annotations import rle_pixels
from mrcnn_ext.engine import Trainer
from mrcnn_ext.engine.checks import check_config
from mrcnn_ext.engine.errors import UserError
from mrcnn_ext.engine.setup import load_config
from mrcnn_ext.engine.trainer import build_validation_loader

pytestmark = pytest.mark.detectron2


def edits(**values):
    """An edit of the first annotation."""
    return lambda content: content["annotations"][0].update(values)


def config(train, test=(), *opts, keypoints=False):
    cfg = load_config("", ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", keypoints, *opts])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.DATASETS.TRAIN = (train,) if isinstance(train, str) else tuple(train)
    cfg.DATASETS.TEST = (test,) if isinstance(test, str) else tuple(test)
    return cfg


def swap_classes(content):
    content["categories"] = [{"id": 1, "name": "car"}, {"id": 2, "name": "person"}]


def test_classes_in_another_order(register):
    train, test = register(), register(swap_classes)
    with pytest.raises(UserError, match=f"'{train}' and '{test}' do not have the same order: class '"):
        check_config(config(train, test))
    with pytest.raises(UserError, match="same order"):
        check_config(config([train, test]))


def test_classes_of_other_names_may_stand_for_the_same(register):
    other = register(lambda content: content["categories"][0].update(name="pedestrian"))
    check_config(config(register(), other))


REFUSED = {
    "two images with one id": (
        lambda content: content["images"].append({**content["images"][0], "file_name": "2.png"}),
        r"image 1 \(2.png\): 1.png has the same id",
    ),
    "RLE that is too short": (
        edits(segmentation={"size": [20, 30], "counts": [100, 100]}),
        r"image 1 \(1.png\), annotation id 1: the counts of its RLE add up to 200 pixels, the image has 20 x 30 = 600",
    ),
    "compressed RLE that is too short": (
        edits(segmentation={"size": [20, 30], "counts": "T3T3"}),
        "annotation id 1: the counts of its RLE add up to 200 pixels",
    ),
    "RLE of another size": (
        edits(segmentation={"size": [30, 20], "counts": [300, 300]}),
        r"its RLE is of size \(30, 20\), the image is \(20, 30\)",
    ),
    "boxes in units of the image": (
        edits(bbox=[0.1, 0.1, 0.5, 0.5]),
        r"annotation id 1: its bbox .* in units of the image's width and height\? It must be in pixels",
    ),
    "a box of five numbers": (
        edits(bbox=[2, 2, 10, 10, 45]),
        "its bbox must have 4 numbers, x, y, width, height",
    ),
    "a box of words": (edits(bbox=["a", 2, 10, 10]), "its bbox: 'a' is no number"),
    "a box of a dict": (edits(bbox={"x": 2}), "its bbox must be a list of numbers, got {'x': 2}"),
    "a negative box": (
        edits(bbox=[12, 2, -10, 10]),
        "annotation id 1: its bbox has a negative width or height",
    ),
    "a box that is not finite": (edits(bbox=[2, 2, float("nan"), 10]), "its bbox: nan is not finite"),
    "an unknown category": (
        edits(category_id=3),
        "annotation id 1: category_id 3 is not among the file's categ",
    ),
    "a category that is null": (edits(category_id=None), "category_id None is not among"),
    "a category that is a list": (edits(category_id=[1]), r"category_id \[1\] is not among"),
    "iscrowd of 2": (edits(iscrowd=2), "iscrowd must be 0 or 1, got 2"),
    "a segmentation of numbers": (edits(segmentation=[2, 2, 12, 2, 12, 12]), "must be a list of polygons"),
    "a segmentation of text": (
        edits(segmentation="mask.png"),
        "segmentation must be polygons, RLE or an array",
    ),
    "an annotation of text": (lambda c: c["annotations"].append("x"), "an annotation must be an object"),
    "no height": (
        lambda content: content["images"][0].pop("height"),
        r"image 1 \(1.png\): its record has no 'hei",
    ),
    "a height of null": (
        lambda content: content["images"][0].update(height=None),
        "its height: None is no number",
    ),
    "no file name": (lambda content: content["images"][0].pop("file_name"), "image 1 .*no 'file_name'"),
    "no image id": (
        lambda content: content["images"][0].pop("id"),
        r"\(without an id\) \(1.png\): its id must be",
    ),
    "keypoints of text": (edits(keypoints=["a", 1, 2]), "its keypoints: 'a' is no number"),
    "half a keypoint": (
        edits(keypoints=[1, 1]),
        "its keypoints must be x, y, visibility for each, got 2 numbers",
    ),
    "no objects left": (
        lambda content: content.update(annotations=[{**a, "iscrowd": 1} for a in content["annotations"]]),
        "1 images and no annotation to learn from",
    ),
    "all boxes empty": (
        lambda content: [a.update(bbox=[2, 2, 0, 0], segmentation=[]) for a in content["annotations"]],
        r"no annotation to learn from \(crowds do not count\): all were left out",
    ),
}


@pytest.mark.parametrize("edit, expected", REFUSED.values(), ids=REFUSED)
def test_refused_before_training(register, edit, expected):
    name = register(edit)
    with pytest.raises(UserError) as error:
        check_config(config(name))
    message = str(error.value)
    assert re.search(expected, message), message
    assert f"dataset {name!r}" in message and "annotations1.json" in message


def test_the_same_in_the_test_data(register):
    train = register()
    for edit, expected in list(REFUSED.values())[:16]:
        with pytest.raises(UserError, match=expected):
            check_config(config(train, register(edit)))


WARNED = {
    "objects of images that are not there": (
        lambda content: content["annotations"].append({**content["annotations"][0], "id": 3, "image_id": 9}),
        "image 9 (not in the file), annotation id 3: the file has no image of this id: it is left out",
    ),
    "an empty box": (
        lambda content: content["annotations"].append(
            {**content["annotations"][0], "id": 3, "bbox": [2, 2, 0, 5], "segmentation": []}
        ),
        "annotation id 3: its bbox [2.0, 2.0, 0.0, 5.0] is empty: it is left out",
    ),
    "an object of which nothing can be drawn": (
        lambda content: content["annotations"].append(
            {**content["annotations"][0], "id": 3, "segmentation": [[2, 2, 5, 5]]}
        ),
        "annotation id 3: nothing of its segmentation can be drawn",
    ),
    "an object to be ignored": (
        lambda content: content["annotations"].append({**content["annotations"][0], "id": 3, "ignore": 1}),
        "annotation id 3: its 'ignore' is set: it counts as a crowd",
    ),
}


@pytest.mark.parametrize("edit, expected", WARNED.values(), ids=WARNED)
def test_left_out_with_a_warning(register, edit, expected, caplog):
    name = register(edit)
    check_config(config(name, name))
    assert expected in caplog.text
    assert sum(not a["iscrowd"] for a in load_dataset(name)[0]["annotations"]) == 2


def test_everything_is_told_at_once_with_counts(register):
    def spoil(content):
        content["images"][0]["file_name"] = "gone.png"
        content["annotations"] = [
            {**content["annotations"][0], "id": 1, "category_id": 7},
            {**content["annotations"][0], "id": 2, "category_id": 8},
            {**content["annotations"][0], "id": 3, "bbox": [1, 2, 3]},
            content["annotations"][1],
        ]

    with pytest.raises(UserError) as error:
        check_config(config(register(spoil), register(lambda content: content["images"][0].pop("width"))))
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert "annotation id 1: category_id 7" in lines[0] and lines[0].endswith("(and 1 more like it)")
    assert "annotation id 3: its bbox must have 4 numbers" in lines[1]
    assert "gone.png" in lines[2] and "does not exist" in lines[2]
    assert "example_2" in lines[3] and "no 'width'" in lines[3]


def test_sums_of_compressed_runs():
    random = np.random.default_rng(0)
    for shape in ((1, 1), (7, 5), (400, 300), (3000, 2000)):
        for share in (0.0, 0.02, 0.5, 1.0):
            mask = np.asfortranarray(random.random(shape) < share, dtype=np.uint8)
            if shape == (3000, 2000):
                mask[100:2900, 100:1900] = share > 0
            counts = mask_util.encode(mask)["counts"]
            assert rle_pixels(counts) == rle_pixels(counts.decode()) == mask.size


# --- Images


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    "array, expected",
    [
        (np.full((20, 30), 1000, np.uint16), "it has more than 8 bits a pixel"),
        (np.full((20, 30), 0.5, np.float32), "it has floating-point pixels"),
        (np.zeros((1, 5000), np.uint8), r"it is 1 x 5000 pixels .*: nothing is left of its shorter side"),
    ],
)
def test_images_that_would_be_read_wrongly(register, tmp_path, array, expected):
    height, width = array.shape

    def edit(content):
        content["images"][0].update(file_name="odd.tif", height=height, width=width)
        content["annotations"] = [{**content["annotations"][0], "bbox": [0, 0, 1, 1], "segmentation": []}] * 1
        content["annotations"][0].update(bbox=[0, 0, min(9, width), min(9, height)])

    name = register(edit)
    save(tmp_path / "odd.tif", array)
    with pytest.raises(UserError, match=f"odd.tif.*{expected}"):
        check_config(config(name, (), "MODEL.MASK_ON", False))


def test_an_image_of_too_many_pixels(register, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    with pytest.raises(
        UserError, match=r"image 1 \(.*1.png\): it has more than 500 pixels, which Pillow refuses"
    ):
        check_config(config(register()))


def test_pngs_are_not_decoded(register, monkeypatch):
    from PIL import PngImagePlugin

    def fail(self):
        raise AssertionError("decoded")

    name = register()
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    check_dataset(name)
    with pytest.raises(ValueError, match="it cannot be read: AssertionError: decoded"):
        check_dataset(name, decode_images=True)


def test_a_png_turned_by_its_exif_data(register, tmp_path):
    def upright(content):
        content["images"][0].update(height=30, width=20)
        content["annotations"].pop()

    name = register(upright)
    image = Image.open(tmp_path / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "1.png", exif=exif)
    dicts = check_dataset(name)
    mapped = DatasetMapper(config(name), False)(dicts[0])
    assert mapped["image"].shape[1] > mapped["image"].shape[2]


def test_a_png_damaged_in_the_middle(register, tmp_path):
    name = register()
    damage(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png.*truncated or damaged"):
        check_dataset(name, decode_images=True)
    with pytest.raises(OSError, match="1.png"):
        DatasetMapper(config(name), True)(load_dataset(name)[0])


# --- What is accepted trains


def no_objects(content):
    content["images"].append({**content["images"][0], "id": 2, "file_name": "2.png"})


def test_crops_of_images_without_objects(register, tmp_path, tiny_cfg):
    name = register(no_objects)
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes())
    cfg = tiny_cfg("INPUT.CROP.ENABLED", True, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False)
    cfg.MODEL.KEYPOINT_ON, cfg.MODEL.ROI_HEADS.NUM_CLASSES = False, 2
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), (name,)
    cfg.DATALOADER.NUM_WORKERS = 0
    check_config(cfg)
    mapper = DatasetMapper(cfg, True)
    assert [len(mapper(record)["instances"]) > 0 for record in load_dataset(name)] == [True, False]
    assert [len(batch[0]["instances"]) for batch in build_validation_loader(cfg)] == [2, 0]


def test_all_zero_keypoints_and_mixed_annotations_train(register, tmp_path, tiny_cfg):
    """What the check accepts trains two steps, is evaluated, and has validation losses."""
    names = ["a", "b", "c"]

    def spoil(content):
        content["categories"][0].update(keypoints=names)
        first, second = content["annotations"]
        first.update(id=0, bbox=["2", "2", "10", "10"], iscrowd="0", keypoints=[3, 3, 2, 0, 0, 0, 9, 9, 1])
        del second["area"]
        content["annotations"] += [
            {**first, "id": 1, "keypoints": [0] * 9},
            {**first, "id": 2, "keypoints": None, "bbox": None},
            {**first, "id": 3, "segmentation": [[1, 1, 2, 2]]},
        ]

    name = register(spoil, description={"sigmas": "uniform"})
    cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 3)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 0, 1, 2
    cfg.SOLVER.STEPS, cfg.OUTPUT_DIR = (), str(tmp_path / "output")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    check_config(cfg)
    trainer = Trainer(cfg)
    trainer.train()
    assert set(trainer._last_eval_results) == {"bbox", "segm", "keypoints"}
    metrics = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").read_text().splitlines()]
    assert any("val/loss_keypoint" in line for line in metrics)


def test_records_without_an_image_id_cannot_be_evaluated(register, catalog):
    dicts = load_dataset(register())
    del dicts[0]["image_id"]
    DatasetCatalog.register("no_ids", lambda: dicts)
    MetadataCatalog.get("no_ids").set(thing_classes=["person", "car"], evaluator_type="coco")
    with pytest.raises(UserError, match="'no_ids': .*1.png has no image_id, which evaluators need"):
        check_config(config("no_ids", "no_ids"))


def test_no_mask_at_all_in_the_test_data(register):
    test = register(lambda content: [a.pop("segmentation") for a in content["annotations"]])
    with pytest.raises(UserError, match="none of its 2 objects has a segmentation, which mask AP needs"):
        check_config(config(register(), test))
    check_config(config(register(), test, "MODEL.MASK_ON", False))


def test_test_images_that_are_trained_on_are_told(register, caplog):
    cfg = load_config("", ["MODEL.ROI_HEADS.NUM_CLASSES", 2, "MODEL.MASK_ON", True])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (register(),)
    check_config(cfg)
    assert "trained on" not in caplog.text, "it is the same dataset: who asks for that knows"
    cfg.DATASETS.TEST = (register(),)
    check_config(cfg)
    assert f"dataset {cfg.DATASETS.TEST[0]!r}: 1 of its 1 images are trained on" in caplog.text
    assert f"of dataset {cfg.DATASETS.TRAIN[0]!r} for one" in caplog.text
