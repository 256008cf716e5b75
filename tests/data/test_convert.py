"""One small dataset in each foreign format goes through convert, check, train, evaluate and draw."""

import base64
import io
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from coco_examples import check_main
from PIL import Image

from mrcnn_ext.data.convert import convert_dataset
from mrcnn_ext.data.convert.coco_writer import write_json
from mrcnn_ext.data.report import FINE

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_dataset.py"
HEIGHT, WIDTH = 64, 80
BOX = [8, 16, 40, 32]  # x, y, width, height; of a dog
POLYGON = [50, 8, 74, 8, 62, 40]  # of a cat
KEYPOINTS = {"nose": (20.5, 30.5), "left_ear": (12.5, 20.5), "right_ear": (28.5, 20.5)}


def save_image(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels if array is None else array).save(path)


def yolo_box():
    x, y, w, h = BOX
    return f"0 {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}"


def yolo(root, *lines, **settings):
    save_image(root / "train" / "images" / "1.png")
    save_image(root / "train" / "images" / "empty.png")
    (root / "train" / "labels").mkdir(parents=True)
    (root / "train" / "labels" / "1.txt").write_text("\n".join(lines) + "\n")
    content = {
        "path": "/somewhere/else",
        "train": "../train/images",
        "names": {0: "dog", 1: "cat"},
        **settings,
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def yolo_polygons(root):
    polygon = " ".join(str(v / (HEIGHT if k % 2 else WIDTH)) for k, v in enumerate(POLYGON))
    x, y, w, h = BOX
    corners = [x, y, x + w, y, x + w, y + h, x, y + h]
    box = "0 " + " ".join(str(v / (HEIGHT if k % 2 else WIDTH)) for k, v in enumerate(corners))
    return yolo(root, box, f"1 {polygon}")


def yolo_pose(root):
    points = " ".join(f"{x / WIDTH} {y / HEIGHT} 2" for x, y in KEYPOINTS.values())
    return yolo(
        root, f"{yolo_box()} {points}", kpt_shape=[3, 3], flip_idx=[0, 2, 1], kpt_names={0: list(KEYPOINTS)}
    )


def voc(root, first=1):
    save_image(root / "JPEGImages" / "1.jpg")
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("1\n")
    x, y, w, h = BOX
    other = f"<xmin>{first}</xmin><ymin>{first}</ymin><xmax>9</xmax><ymax>9</ymax>"
    corners = f"<xmin>{x + first}</xmin><ymin>{y + first}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
    (root / "Annotations" / "1.xml").write_text(
        f"<annotation><filename>1.jpg</filename><object><name>dog</name><bndbox>{corners}</bndbox></object>"
        f"<object><name>cat</name><difficult>1</difficult><bndbox>{other}</bndbox></object></annotation>"
    )
    return root


def labelme(root):
    save_image(root / "photos" / "1.png")
    x, y, w, h = BOX
    dog = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
    shapes = [{"label": "dog", "points": dog, "group_id": 1, "shape_type": "polygon"}]
    points = [POLYGON[k : k + 2] for k in range(0, 6, 2)]
    shapes += [{"label": "cat", "points": points, "group_id": None, "shape_type": "polygon"}]
    for name, place in KEYPOINTS.items():
        hidden = {"description": "hidden"} if name == "right_ear" else {}
        shapes.append({"label": name, "points": [place], "group_id": 1, "shape_type": "point", **hidden})
    content = {"imagePath": "1.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (root / "photos" / "1.json").write_text(json.dumps(content))
    return root / "photos"


def masks(root):
    save_image(root / "images" / "1.png")
    x, y, w, h = BOX
    dog = np.zeros((HEIGHT, WIDTH), np.uint8)
    dog[y : y + h, x : x + w] = 255
    save_image(root / "masks" / "dog" / "1_0.png", dog)
    cats = np.zeros((HEIGHT, WIDTH), np.uint8)
    cats[8:20, 50:60], cats[30:40, 60:70] = 1, 2
    save_image(root / "masks" / "cat" / "1.png", cats)
    return root


def cvat(root):
    save_image(root / "images" / "1.png")
    x, y, w, h = BOX
    corners = ";".join(f"{POLYGON[k]},{POLYGON[k + 1]}" for k in range(0, 6, 2))
    ears = ((name, place, int(name == "right_ear")) for name, place in KEYPOINTS.items())
    points = "".join(
        f'<points label="{n}" outside="0" occluded="{hidden}" points="{p[0]},{p[1]}"/>'
        for n, p, hidden in ears
    )
    sub_labels = "".join(f"<label><name>{name}</name><parent>dog</parent></label>" for name in KEYPOINTS)
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta><task><labels>{sub_labels}</labels></task></meta>"
        f'<image id="0" name="1.png" subset="Train" width="{WIDTH}" height="{HEIGHT}">'
        f'<box label="dog" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" group_id="1"><attribute name="a"/></box>'
        f'<skeleton label="dog" group_id="1">{points}</skeleton><polygon label="cat" points="{corners}"/>'
        '<tag label="sunny"/><mask label="cat" rle="3,2,1,4" left="60" top="50" width="5" height="2"/>'
        "</image></annotations>"
    )
    return root


def cityscapes(root, **files):
    """A dog, a cat that lies over it, a crowd of cats, sky."""
    save_image(root / "leftImg8bit" / "val" / "town" / "town_1_leftImg8bit.png")
    numbers = np.zeros((HEIGHT, WIDTH), np.uint16)
    x, y, w, h = BOX
    numbers[y : y + h, x : x + w], numbers[8:24, 40:60], numbers[50:, 60:] = 7001, 8003, 8
    numbers[:4] = 23
    save_image(root / "gtFine" / "val" / "town" / "town_1_gtFine_instanceIds.png", numbers)
    (root / "classes.yaml").write_text(yaml.safe_dump({7: "dog", 8: "cat"}))
    return root


def cityscapes_polygons(root):
    save_image(root / "leftImg8bit" / "val" / "1.png")
    x, y, w, h = BOX
    outlines = {
        "sky": [[0, 0], [WIDTH, 0], [WIDTH, 4], [0, 4]],
        "dog": [[x, y], [x + w, y], [x + w, y + h], [x, y + h]],
        "cat": [[40, 8], [60, 8], [60, 24], [40, 24]],
        "catgroup": [[60, 50], [WIDTH, 50], [WIDTH, HEIGHT], [60, HEIGHT]],
    }
    objects = [{"label": label, "polygon": polygon} for label, polygon in outlines.items()]
    (root / "gtFine" / "val").mkdir(parents=True)
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    (root / "gtFine" / "val" / "1_polygons.json").write_text(json.dumps(content))
    return root


FORMATS = {
    "yolo boxes": ("yolo", lambda root: yolo(root, yolo_box()), ("bbox",)),
    "yolo polygons": ("yolo", yolo_polygons, ("bbox", "segm")),
    "yolo pose": ("yolo", yolo_pose, ("bbox", "keypoints")),
    "voc": ("voc", voc, ("bbox",)),
    "labelme": ("labelme", labelme, ("bbox", "segm", "keypoints")),
    "masks": ("masks", masks, ("bbox", "segm")),
    "cvat": ("cvat", cvat, ("bbox", "keypoints")),
    "cityscapes": ("cityscapes", cityscapes, ("bbox", "segm")),
    "cityscapes polygons": ("cityscapes", cityscapes_polygons, ("bbox", "segm")),
}


@pytest.mark.detectron2
@pytest.mark.parametrize("kind, make, tasks", FORMATS.values(), ids=FORMATS)
def test_from_the_foreign_file_to_the_model(tmp_path, catalog, tiny_cfg, kind, make, tasks):
    pytest.importorskip("detectron2")
    from mrcnn_ext.engine import Trainer
    from mrcnn_ext.engine.checks import check_config
    from mrcnn_ext.engine.setup import register_datasets

    source, output = make(tmp_path / "data"), tmp_path / "coco" / "annotations.json"
    entry = yaml.safe_load(convert_dataset(kind, str(source), str(output)).config_line("mine"))[
        "COCO_FORMAT"
    ][0]
    drawn = tmp_path / "drawn"
    assert (
        check_main([entry[1], "--images", entry[2], "--quiet", "--strict", "--pictures", str(drawn)]) == FINE
    )
    assert len(list(drawn.iterdir())) == 1

    register_datasets([[entry[0], entry[1], entry[2], *(entry[3:] or [{}])]])
    content = json.loads(Path(entry[1]).read_text())
    cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", len(content["categories"]), "SOLVER.MAX_ITER", 2)
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = "segm" in tasks, "keypoints" in tasks
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, cfg.TEST.KEYPOINT_OKS_SIGMAS = 3, [0.05] * 3
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("mine",)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS = 0, 1, ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.OUTPUT_DIR = (64,), 64, str(tmp_path / "output")
    check_config(cfg)
    trainer = Trainer(cfg)
    trainer.train()
    assert set(trainer._last_eval_results) == set(tasks)


def test_the_tool(tmp_path, monkeypatch, capsys):
    source, output = yolo_pose(tmp_path / "data"), tmp_path / "out.json"
    monkeypatch.setattr(sys, "argv", [str(TOOL), "yolo", str(source), str(output), "--name", "dogs"])
    runpy.run_path(str(TOOL), run_name="__main__")
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == f"{output}: 2 images, 1 objects of 2 classes"
    entry = yaml.safe_load(last)["COCO_FORMAT"][0]
    assert entry == ["dogs", str(output), str(source.parent), str(tmp_path / "out.description.yaml")]


def converted(kind, source, tmp_path, **options):
    done = convert_dataset(kind, str(source), str(tmp_path / "out.json"), **options)
    content = json.loads((tmp_path / "out.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    by_name = {names[a["category_id"]]: a for a in content["annotations"]}
    return done, content, by_name


def test_yolo_boxes_are_exact_and_images_without_labels_stay(tmp_path):
    done, content, found = converted("yolo", yolo(tmp_path / "data", yolo_box()), tmp_path)
    assert found["dog"]["bbox"] == pytest.approx(BOX) and "segmentation" not in found["dog"]
    assert [image["file_name"] for image in content["images"]] == [
        "train/images/1.png",
        "train/images/empty.png",
    ]
    assert [category["name"] for category in content["categories"]] == ["dog", "cat"]
    assert (done.images, done.objects, done.categories) == (2, 1, 2) and not done.description


def test_yolo_polygons_keep_their_corners(tmp_path):
    _, _, found = converted("yolo", yolo_polygons(tmp_path / "data"), tmp_path)
    assert found["cat"]["segmentation"][0] == pytest.approx(POLYGON)
    assert found["cat"]["bbox"] == pytest.approx([50, 8, 24, 32])


def test_yolo_keypoints_and_their_sides(tmp_path):
    done, content, found = converted("yolo", yolo_pose(tmp_path / "data"), tmp_path)
    places = [v for x, y in KEYPOINTS.values() for v in (x - 0.5, y - 0.5, 2)]
    assert found["dog"]["keypoints"] == pytest.approx(places)
    assert content["categories"][0]["keypoints"] == list(KEYPOINTS)
    assert yaml.safe_load(Path(done.description).read_text()) == {"flip_pairs": [["left_ear", "right_ear"]]}
    assert json.dumps(done.description) in done.config_line("mine")


@pytest.mark.parametrize("first", [0, 1])
def test_voc_counts_from_one_or_from_zero(tmp_path, first):
    _, _, found = converted("voc", voc(tmp_path / "data", first), tmp_path, split="train")
    assert found["dog"]["bbox"] == BOX
    assert found["cat"]["bbox"] == [0, 0, 9, 9] and found["cat"]["difficult"] == 1


def test_labelme_polygons_and_keypoints(tmp_path):
    _, content, found = converted("labelme", labelme(tmp_path / "data"), tmp_path)
    assert found["cat"]["segmentation"] == [POLYGON] and found["dog"]["bbox"] == BOX
    places = [v for x, y in KEYPOINTS.values() for v in (x - 0.5, y - 0.5, 2)]
    places[-1] = 1  # hidden
    assert found["dog"]["keypoints"] == places
    assert found["cat"]["keypoints"] == [0] * 9
    assert content["categories"][0]["keypoints"] == list(KEYPOINTS)


POINT = {"label": "a", "points": [[1, 1]], "shape_type": "point"}
LINE = {"label": "a", "points": [[1, 1], [2, 2]]}


def labelme_shapes(root, shapes):
    save_image(root / "1.png")
    (root / "1.json").write_text(json.dumps({"imagePath": "1.png", "shapes": shapes}))
    return root


def test_other_shapes_of_labelme(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.ones((4, 6), bool)).save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    shapes = [
        {"label": "box", "points": [[20, 30], [10, 12]], "shape_type": "rectangle"},
        {"label": "disc", "points": [[40, 30], [40, 40]], "shape_type": "circle"},
        {"label": "mask", "points": [[60, 40], [65, 43]], "shape_type": "mask", "mask": mask},
        {"label": "parts", "points": [[0, 0], [5, 0], [5, 5]], "group_id": 3},
        {"label": "parts", "points": [[10, 0], [15, 0], [15, 5]], "group_id": 3},
        {"label": "dot", "points": [[15, 20]], "shape_type": "point"},
    ]
    _, content, found = converted("labelme", labelme_shapes(tmp_path / "data", shapes), tmp_path)
    assert len(content["annotations"]) == 4
    assert found["box"]["bbox"] == [10, 12, 10, 18] and found["box"]["keypoints"] == [14.5, 19.5, 2]
    assert found["disc"]["bbox"] == pytest.approx([30, 20, 20, 20], abs=0.1)
    assert found["disc"]["area"] == pytest.approx(np.pi * 100, rel=0.02)
    assert found["mask"]["bbox"] == [60, 40, 6, 4] and found["mask"]["area"] == 24
    assert len(found["parts"]["segmentation"]) == 2 and found["parts"]["bbox"] == [0, 0, 15, 5]


def test_masks_as_files(tmp_path):
    _, content, found = converted("masks", masks(tmp_path / "data"), tmp_path)
    assert found["dog"]["bbox"] == BOX and found["dog"]["area"] == BOX[2] * BOX[3]
    assert sorted(a["area"] for a in content["annotations"]) == [100, 120, 1280]
    mask = mask_util.decode(
        {**found["dog"]["segmentation"], "counts": found["dog"]["segmentation"]["counts"]}
    )
    assert mask[16:48, 8:48].all() and mask.sum() == 1280


def test_cvat(tmp_path):
    done, content, _ = converted("cvat", cvat(tmp_path / "data"), tmp_path, split="train")
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    dog, cat, spots = content["annotations"]
    places = [v for x, y in KEYPOINTS.values() for v in (x - 0.5, y - 0.5, 2)]
    places[-1] = 1  # occluded
    assert dog["bbox"] == BOX and dog["keypoints"] == places and done.objects == 3
    assert cat["segmentation"] == [POLYGON] and cat["keypoints"] == [0] * 9
    mask = mask_util.decode(spots["segmentation"])
    assert mask[50:52, 60:65].tolist() == [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]] and mask.sum() == 6


def cvat_shapes(root, shapes, image='name="1.png"'):
    save_image(root / "1.png")
    (root / "annotations.xml").write_text(f"<annotations><image {image}>{shapes}</image></annotations>")
    return root


def test_other_shapes_of_cvat(tmp_path):
    shapes = (
        '<box label="turned" xtl="20" ytl="30" xbr="40" ybr="34" rotation="90"/>'
        '<ellipse label="disc" cx="50" cy="30" rx="10" ry="5"/>'
        '<polygon label="parts" points="0,0;5,0;5,5" group_id="3"/>'
        '<polygon label="parts" points="10,0;15,0;15,5" group_id="3"/>'
        '<skeleton label="line"><points label="a" points="60,60" outside="0"/>'
        '<points label="b" points="70,60" outside="0"/><points label="c" points="1,1" outside="1"/></skeleton>'
        '<points label="dot" points="45,30;51,31"/>'
    )
    _, content, found = converted("cvat", cvat_shapes(tmp_path / "data", shapes), tmp_path)
    assert content["categories"][0]["keypoints"] == ["a", "b", "c", "dot_1", "dot_2"]
    assert found["turned"]["bbox"] == pytest.approx([28, 22, 4, 20])
    assert found["disc"]["bbox"] == pytest.approx([40, 25, 20, 10], abs=0.1)
    assert found["disc"]["keypoints"][9:] == [44.5, 29.5, 2, 50.5, 30.5, 2]
    assert len(found["parts"]["segmentation"]) == 2 and found["parts"]["bbox"] == [0, 0, 15, 5]
    assert found["line"]["bbox"] == [60, 59, 10, 2]
    assert found["line"]["keypoints"][:9] == [59.5, 59.5, 2, 69.5, 59.5, 2, 0, 0, 0]


@pytest.mark.parametrize("make", [cityscapes, cityscapes_polygons])
def test_cityscapes(tmp_path, make):
    _, content, _ = converted("cityscapes", make(tmp_path / "data"), tmp_path, split="val")
    names = {category["id"]: category["name"] for category in content["categories"]}
    found = {(names[a["category_id"]], a["iscrowd"]): a for a in content["annotations"]}
    assert set(found) == {("dog", 0), ("cat", 0), ("cat", 1)}
    x, y, w, h = BOX
    assert found["dog", 0]["area"] == w * h - 8 * 8 and found["dog", 0]["bbox"] == BOX, "the cat lies over it"
    assert found["cat", 0]["area"] == 20 * 16 and found["cat", 0]["bbox"] == [40, 8, 20, 16]
    assert isinstance(found["cat", 0]["segmentation"], list) == (make is cityscapes_polygons)
    assert found["cat", 1]["area"] == 20 * 14


@pytest.mark.parametrize(
    "kind, make, expected",
    [
        (
            "cvat",
            lambda root: cvat_shapes(root, '<polyline label="a"/>'),
            "image 1.png: a polyline of 'a': only box",
        ),
        ("cvat", lambda root: cvat_shapes(root, '<box label="a" xtl="1"/>'), "a box of 'a' cannot be read"),
        ("cvat", lambda root: cvat_shapes(root, "", 'name="2.png"'), "there is no image '2.png'"),
        (
            "cvat",
            lambda root: cvat_shapes(root, "", 'name="1.png" width="9" height="9"'),
            "height and width are 9",
        ),
        (
            "cvat",
            lambda root: cvat_shapes(root, '<mask label="a" rle="3" left="0" top="0" width="2" height="2"/>'),
            "its rle has 3 pixels, width x height is 4",
        ),
        (
            "cvat",
            lambda root: cvat_shapes(root, '<points label="a" points="1,1"/>'),
            "'a' must belong to one object",
        ),
        ("cvat", lambda root: cvat_shapes(root, '<skeleton label="a"/>'), "has no point within the image"),
        ("cvat", lambda root: root, "there is no such file; CVAT's exports have"),
        ("cityscapes", lambda root: root, "leftImg8bit.*: there is no such folder"),
    ],
)
def test_what_is_wrong_with_cvat_and_cityscapes_is_named(tmp_path, kind, make, expected):
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        convert_dataset(kind, str(make(tmp_path / "data")), str(tmp_path / "out.json"))


def test_cityscapes_files_that_are_wrong_are_named(tmp_path):
    root = cityscapes(tmp_path / "data")

    def convert():
        return convert_dataset("cityscapes", str(root), str(tmp_path / "out.json"))

    (root / "classes.yaml").write_text("[dog]")
    with pytest.raises(ValueError, match="classes.yaml: it must have names of classes by their numbers"):
        convert()
    (root / "classes.yaml").write_text("7: dog")
    with pytest.raises(
        ValueError, match="class 8, of pixels with 8003, has no name: write a file classes.yaml"
    ):
        convert()
    truth = next((root / "gtFine").rglob("*.png"))
    save_image(truth, np.zeros((4, 4), np.uint16))
    with pytest.raises(
        ValueError, match=r"instanceIds.png: it must be of one channel .*\(64, 80\), got \(4, 4\)"
    ):
        convert()
    truth.unlink()
    with pytest.raises(
        FileNotFoundError, match="town_1_gtFine_instanceIds.png, or ..._polygons.json, the truth of"
    ):
        convert()
    other = truth.with_name("town_1_gtFine_polygons.json")
    other.write_text(json.dumps({"objects": [{"label": "dog", "polygon": [[1, 1]]}]}))
    with pytest.raises(ValueError, match="polygons.json: an object must have a 'label' and a 'polygon'"):
        convert()


@pytest.mark.parametrize(
    "kind, make, expected",
    [
        (
            "yolo",
            lambda root: yolo(root, "7 0.5 0.5 0.1 0.1"),
            "1.txt, line 1: its class must be 0 to 1, got 7",
        ),
        (
            "yolo",
            lambda root: yolo(root, "0 0.5 0.5 0.1"),
            "1.txt, line 1: after the class there must be 4 numbers",
        ),
        ("yolo", lambda root: yolo(root, "0 0.5 b 0.1 0.2"), "1.txt, line 1: could not convert string"),
        ("yolo", lambda root: yolo(root, yolo_box(), names=None), "data.yaml: it must have 'names'"),
        ("yolo", lambda root: yolo(root, yolo_box(), kpt_shape=3), "kpt_shape must be .* got 3"),
        (
            "yolo",
            lambda root: yolo(root, yolo_box(), kpt_shape=[2, 3], flip_idx=[0, 0]),
            "flip_idx must have each",
        ),
        (
            "yolo",
            lambda root: yolo(root, yolo_box(), train="nowhere"),
            "its 'train', .*nowhere, does not exist",
        ),
        ("yolo", lambda root: yolo(root, yolo_box(), train=None), "there is no 'train' in it"),
        ("yolo", lambda root: root, "there is no such file; YOLO's datasets have a data.yaml"),
        ("voc", lambda root: root, "there is no such folder"),
        ("labelme", lambda root: labelme_shapes(root, [POINT]), "1.json: the point 'a' must belong to one"),
        ("labelme", lambda root: labelme_shapes(root, [LINE]), "1.json: an object of class 'a': nothing"),
        (
            "labelme",
            lambda root: labelme_shapes(root, [{"points": []}]),
            "1.json: a shape must have a 'label'",
        ),
        (
            "labelme",
            lambda root: labelme_shapes(
                root, [{"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "line"}]
            ),
            "1.json: a line of 'a': only polygons",
        ),
        ("masks", lambda root: root, "images: there is no such folder"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, kind, make, expected):
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        convert_dataset(kind, str(make(tmp_path / "data")), str(tmp_path / "out.json"))
    assert not list(tmp_path.glob("out.json*"))


def test_masks_that_are_wrong_are_named(tmp_path):
    root = masks(tmp_path / "data")
    save_image(root / "masks" / "other.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match="other.png: there is no image for this mask"):
        convert_dataset("masks", str(root), str(tmp_path / "out.json"))
    (root / "masks" / "other.png").unlink()
    save_image(root / "masks" / "1_1.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"1_1.png: it must be of one channel .* \(64, 80\), got \(4, 4\)"):
        convert_dataset("masks", str(root), str(tmp_path / "out.json"))
    with pytest.raises(ValueError, match="format 'csv' is unknown; known are yolo, voc, labelme, cvat, city"):
        convert_dataset("csv", str(root), str(tmp_path / "out.json"))


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_json({"images": [b"rle"]}, str(path))
    with pytest.raises(AttributeError):
        write_json({"images": [object()]}, str(path))
    assert json.loads(path.read_text()) == {"images": ["rle"]} and list(tmp_path.iterdir()) == [path]
