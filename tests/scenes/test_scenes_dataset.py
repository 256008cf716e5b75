"""The files of a dataset of scenes, read back by the programs they are meant for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import mrcnn_ext_command
from mrcnn_ext.data.data_file import read_data_file
from mrcnn_ext.scenes import (
    CATEGORY_NAMES,
    KEYPOINT_NAMES,
    get_preset,
    read_meta,
    scene_of,
    write_dataset,
)

TOOL = Path(__file__).parents[2] / "datasets" / "make_scenes.py"
PRESET = get_preset("easy", crowd=0.3, empty=0.1)


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "scenes"
    assert write_dataset(root, PRESET, 24, 8, seed=2)
    return root


def test_same_bytes_for_any_number_of_workers_and_other_seeds_differ(root, tmp_path):
    write_dataset(tmp_path / "two", PRESET, 24, 8, seed=2, workers=2)
    assert files(tmp_path / "two") == files(root)
    write_dataset(tmp_path / "seed", PRESET, 2, 1, seed=3)
    name = "leftImg8bit/train/aldorf/aldorf_000000_000019_leftImg8bit.png"
    assert (tmp_path / "seed" / name).read_bytes() != (root / name).read_bytes()


def test_complete_dataset_is_left_alone_and_another_is_refused(root, tmp_path):
    before = files(root)
    stamp = os.stat(root / "scenes.json").st_mtime_ns
    assert write_dataset(root, PRESET, 24, 8, seed=2) is False
    assert os.stat(root / "scenes.json").st_mtime_ns == stamp
    with pytest.raises(FileExistsError, match="seed is 2, asked for 4.*--force"):
        write_dataset(root, PRESET, 24, 8, seed=4)
    with pytest.raises(FileExistsError, match="preset.width is 256, asked for 192"):
        write_dataset(root, get_preset("easy", crowd=0.3, empty=0.1, width=192), 24, 8, seed=2)
    assert files(root) == before
    target = tmp_path / "scenes"
    write_dataset(target, PRESET, 2, 1, seed=0)
    assert write_dataset(target, PRESET, 1, 1, seed=1, force=True)
    assert read_meta(target)["seed"] == 1 and len(list(target.rglob("*_leftImg8bit.png"))) == 2


def test_what_is_not_a_dataset_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a dataset of scenes"):
        write_dataset(tmp_path, PRESET, 1, 1, force=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_failure_leaves_nothing_behind(tmp_path):
    def stop(items, total, split):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "scenes", PRESET, 4, 1, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"num_train": -1}, "num_train must be at least 0, got -1"),
        ({"num_train": 0, "num_val": 0}, "nothing to write"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"formats": ["voc"]}, r"formats must name at least one of .*got \['voc'\]"),
        ({"preset": "hard"}, "unknown preset 'hard'"),
    ],
)
def test_bad_arguments(tmp_path, arguments, match):
    with pytest.raises(ValueError, match=match):
        write_dataset(tmp_path / "scenes", **{"preset": "easy", "num_train": 1, "num_val": 1} | arguments)
    assert not (tmp_path / "scenes").exists()


def test_one_format_alone(tmp_path):
    write_dataset(tmp_path / "a", PRESET, 1, 1, formats=["coco"])
    assert not (tmp_path / "a" / "gtFine").exists()
    write_dataset(tmp_path / "b", PRESET, 1, 1, formats=["cityscapes"])
    assert not (tmp_path / "b" / "annotations").exists()


@pytest.mark.parametrize("split, count", [("train", 24), ("val", 8)])
def test_pycocotools_reads_instances(root, split, count):
    coco = pytest.importorskip("pycocotools.coco").COCO(root / "annotations" / f"instances_{split}.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CATEGORY_NAMES)
    assert all(c.get("keypoints") == list(KEYPOINT_NAMES) for c in coco.loadCats([1, 2]))
    assert len(coco.getImgIds()) == count
    ious = []
    for image in coco.loadImgs(coco.getImgIds()):
        index = image["id"] - 1
        scene = scene_of(PRESET, 2, split, index)
        assert np.array_equal(cv2.imread(str(root / image["file_name"]))[:, :, ::-1], scene.image)
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(scene.instances)
        for k, (annotation, instance) in enumerate(zip(annotations, scene.instances, strict=True)):
            assert CATEGORY_NAMES[annotation["category_id"] - 1] == instance.category
            assert (
                isinstance(annotation["segmentation"], dict)
                == bool(annotation["iscrowd"])
                == instance.iscrowd
            )
            mask, read = scene.mask(k), coco.annToMask(annotation).astype(bool)
            ious.append((mask & read).sum() / (mask | read).sum())
            assert annotation["area"] == mask.sum()
            assert len(annotation["keypoints"]) == 51
            visibility = annotation["keypoints"][2::3]
            assert annotation["num_keypoints"] == sum(v > 0 for v in visibility)
            if instance.keypoints is None:
                assert not any(annotation["keypoints"])
            x, y, w, h = annotation["bbox"]
            for kx, ky, v in zip(*[iter(annotation["keypoints"])] * 3, strict=True):
                if v == 2:
                    assert x - 2 <= kx <= x + w + 1 and y - 2 <= ky <= y + h + 1
    assert np.mean(ious) > 0.95


def test_crowds_and_empty_images_are_in_both_formats(root):
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    with_annotations = {a["image_id"] for a in content["annotations"]}
    assert crowds and len(with_annotations) < len(content["images"])
    assert len(list((root / "gtFine" / "train").rglob("*_polygons.json"))) == len(content["images"])
    polygons = [json.loads(p.read_text()) for p in (root / "gtFine" / "train").rglob("*_polygons.json")]
    groups = [o for p in polygons for o in p["objects"] if o["label"].endswith("group")]
    assert len(groups) == len(crowds)


def test_person_keypoints_count_riders(root):
    coco = pytest.importorskip("pycocotools.coco").COCO(root / "annotations" / "person_keypoints_train.json")
    both = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["person"]
    figures = [a for a in both["annotations"] if a["category_id"] in (1, 2)]
    assert len(coco.getAnnIds()) == len(figures) > sum(a["category_id"] == 1 for a in figures)
    assert len(coco.getImgIds()) == len(both["images"])


def test_info_says_how_it_was_made(root):
    info = json.loads((root / "annotations" / "instances_val.json").read_text())["info"]
    assert info["seed"] == 2 and info["preset"]["name"] == "easy" and info["version"]


def test_cityscapesscripts_reads_the_instance_images(root):
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    reader = pytest.importorskip("cityscapesscripts.evaluation.instances2dict")
    known = {label.id: label for label in labels.labels}
    found = 0
    for index in range(24):
        scene = scene_of(PRESET, 2, "train", index)
        paths = sorted((root / "gtFine" / "train").rglob(f"*_{index:06d}_000019_gtFine_instanceIds.png"))
        instances = reader.instances2dict([str(p) for p in paths])[str(paths[0])]
        for name in CATEGORY_NAMES:
            singles = [i for i in instances[name] if i["instID"] >= 1000]
            truth = [i for i in scene.instances if i.category == name and not i.iscrowd]
            assert sorted(i["pixelCount"] for i in singles) == sorted(i.area for i in truth)
            found += len(singles)
        label_map = cv2.imread(str(paths[0]).replace("instanceIds", "labelIds"), cv2.IMREAD_UNCHANGED)
        assert set(np.unique(label_map)) <= set(known)
    assert found > 30


def test_cityscapesscripts_draws_the_same_from_the_polygons(root):
    annotation = pytest.importorskip("cityscapesscripts.helpers.annotation")
    draw = pytest.importorskip("cityscapesscripts.preparation.json2instanceImg")
    ious = []
    for path in sorted((root / "gtFine" / "val").rglob("*_polygons.json")):
        read = annotation.Annotation()
        read.fromJsonFile(str(path))
        drawn = np.array(draw.createInstanceImage(read, "ids"))
        png = cv2.imread(str(path).replace("polygons.json", "instanceIds.png"), cv2.IMREAD_UNCHANGED)
        assert png.dtype == np.uint16
        for value in np.unique(png[png >= 1000]):
            ious.append(((drawn == value) & (png == value)).sum() / ((drawn == value) | (png == value)).sum())
        assert (drawn == png).mean() > 0.97
    assert np.mean(ious) > 0.85


def scenes(arguments):
    """Exit code of `mrcnn-ext datasets scenes`."""
    try:
        mrcnn_ext_command.main(["datasets", "scenes", *arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_tool_writes_a_dataset_and_a_sheet(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    arguments = [tmp_path / "scenes", "--preset", "easy", "--train", 3, "--val", 1, "--size", "96x128"]
    arguments = [str(a) for a in (*arguments, "--actors", "1-2")]
    more = ["--workers", "2", "--contact-sheet", str(sheet), "--sheet-images", "4"]
    env = {**os.environ, "PYTHONPATH": str(TOOL.parents[1])}
    done = subprocess.run([sys.executable, TOOL, *arguments, *more], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout
    assert cv2.imread(str(sheet)).shape == (192, 4 * 256 + 12, 3)
    assert read_meta(tmp_path / "scenes")["preset"]["height"] == 96
    assert scenes(arguments) == 0
    assert "already complete" in capsys.readouterr().out
    assert scenes([*arguments, "--seed", "1"]) == 1
    assert "holds another dataset (seed is 0, asked for 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--help"], "Examples:"),
        (["out", "--size", "big"], "--size is HEIGHTxWIDTH"),
        (["out", "--size", "8x8"], "height must be at least 32 pixels"),
        (["out", "--contact-sheet", "x.png", "--formats", "cityscapes"], "--formats must have coco"),
    ],
)
def test_tool_help_has_examples_and_bad_arguments_are_named(capsys, arguments, text):
    assert scenes(arguments) == (0 if arguments == ["--help"] else 2)
    output = capsys.readouterr()
    assert text in output.out + output.err


def test_the_sample_comes_with_a_data_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["datasets", "sample", "try", "--train", "3", "--val", "1"]
    done = CliRunner().invoke(mrcnn_ext_command.command, words)
    assert done.exit_code == 0 and "mrcnn-ext train data=try/try.yaml" in done.output
    file = read_data_file("try/try.yaml")
    assert (file.train, file.test) == (("try_train",), ("try_val",))
    counts = [len(json.loads(Path(entry[1]).read_text())["images"]) for entry in file.coco_format]
    assert counts == [3, 1]
    # Again it is left as it is, with what its owner has written.
    Path("try/try.yaml").write_text("train: [annotations/instances_train.json, .]\nname: mine\n")
    assert CliRunner().invoke(mrcnn_ext_command.command, words).exit_code == 0
    assert "mine" in Path("try/try.yaml").read_text()
