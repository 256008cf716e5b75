"""Files of proposals: written, read as detectron2 reads them, added to data; selective search where OpenCV has it."""

import pickle

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from mrcnn_ext.data import (
    build_test_loader,
    build_train_loader,
    get_detection_dataset_dicts,
    selective_search,
)
from mrcnn_ext.data.proposals import add_proposals, proposal_recall, read_proposals, write_proposals
from mrcnn_ext.engine.trainer import build_validation_loader

pytestmark = pytest.mark.detectron2

HAS_SEARCH = hasattr(getattr(cv2, "ximgproc", None), "segmentation")
NAME = "proposals_test"


@pytest.fixture
def dicts(tmp_path):
    """Three images of a bright rectangle, as the registered dataset ``NAME``."""
    records = []
    for i in range(3):
        image = np.full((48, 64, 3), 30, np.uint8)
        image[10:40, 8 + i : 40 + i] = (200, 120, 60)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        box = {"bbox": [8 + i, 10, 32, 30], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
        name = str(tmp_path / f"{i}.png")
        records.append(
            {"file_name": name, "image_id": 10 + i, "height": 48, "width": 64, "annotations": [box]}
        )
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=["thing"], evaluator_type="coco")
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def file(tmp_path):
    """Proposals of the images, in another order than theirs, and none for the last."""
    boxes = [np.array([[0, 0, 9, 9], [9, 11, 40, 41]]), np.zeros((0, 4)), np.array([[8, 10, 40, 40.0]])]
    write_proposals(
        tmp_path / "p.pkl", [11, 12, 10], boxes, [np.array([-1.0, 2]), np.zeros(0), np.array([0.5])], {"a": 1}
    )
    return str(tmp_path / "p.pkl")


def test_detectron2_reads_what_is_written(dicts, file):
    theirs = load_proposals_into_dataset([dict(record) for record in dicts[:2]], file)
    ours = add_proposals(dicts, file, NAME)
    for record, expected in zip(ours, theirs, strict=False):
        np.testing.assert_array_equal(record["proposal_boxes"], expected["proposal_boxes"])
        np.testing.assert_array_equal(
            record["proposal_objectness_logits"], expected["proposal_objectness_logits"]
        )
        assert record["proposal_bbox_mode"] == expected["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    assert ours[1]["proposal_boxes"].tolist() == [[9, 11, 40, 41], [0, 0, 9, 9]], "not best first"
    assert ours[2]["proposal_boxes"].tolist() == [[0, 0, 64, 48]], "an image without gets itself"
    assert "proposal_boxes" not in dicts[0] and read_proposals(file)["about"] == {"a": 1}
    content = {"indexes": [10], "boxes": [np.array([[1, 2, 3, 4]])], "scores": [np.ones(1)], "bbox_mode": 1}
    with open(file, "wb") as target:
        pickle.dump(content, target)
    assert read_proposals(file)["boxes"][0].tolist() == [[1, 2, 4, 6]]


def test_recall(dicts, file):
    content = read_proposals(file)
    first, every = proposal_recall(dicts, content, [1, None])
    assert first == every == pytest.approx(2 / 3)
    assert proposal_recall(dicts, content, [None], iou=0.99) == [pytest.approx(1 / 3)]


class Runs:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize(
    "content, message",
    [
        (Runs(), r"holds code \(builtins.print\)"),
        ([1, 2], "is a dict of ids, boxes, objectness_logits"),
        ({"ids": [1], "boxes": [], "objectness_logits": []}, "as many of each, got 1 ids, 0 boxes"),
        (
            {"ids": [1], "boxes": [np.zeros((2, 4))], "objectness_logits": [np.zeros(1)]},
            "image 1: 2 boxes and 1",
        ),
        ({"ids": [], "boxes": [], "objectness_logits": [], "bbox_mode": 4}, "bbox_mode must be 0 .*, got 4"),
        (None, "no file of proposals, or damaged"),
        ({"ids": 3, "boxes": 4, "objectness_logits": 5}, "no file of proposals, or damaged"),
        ({"ids": [1], "boxes": ["a"], "objectness_logits": [[1]]}, "no file of proposals, or damaged"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message, capsys):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(content) if content is not None else b"\x80")
    with pytest.raises(ValueError, match=message):
        read_proposals(path)
    assert "ran" not in capsys.readouterr().out


def test_damage_of_any_kind_is_told(file):
    content = open(file, "rb").read()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(len(content), size=2)] = rng.integers(256, size=2)
        with open(file, "wb") as target:
            target.write(damaged.tobytes())
        try:
            read_proposals(file)  # values may be others, too
        except ValueError as error:
            assert file in str(error)


def test_missing_ones_are_named(dicts, file, tmp_path):
    write_proposals(file, [10, 11], [np.zeros((1, 4))] * 2, [np.zeros(1)] * 2)
    with pytest.raises(ValueError, match=r"has no proposals for 1 of the 3 images .*2.png \(id 12\)"):
        get_detection_dataset_dicts(NAME, proposal_files=[file])
    with pytest.raises(
        ValueError, match="make them with: mrcnn-ext datasets proposals proposals_test .*none"
    ):
        get_detection_dataset_dicts(NAME, proposal_files=[str(tmp_path / "none.pkl")])
    with pytest.raises(ValueError, match="a file of proposals for each dataset .* got 1 for 2"):
        get_detection_dataset_dicts([NAME, NAME], proposal_files=[file])


def test_loaders_give_proposals(tiny_cfg, dicts, file):
    cfg = tiny_cfg(
        *("MODEL.LOAD_PROPOSALS", "True", "MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "False"),
        *("DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{file}',)"),
        *("DATASETS.TEST", f"('{NAME}',)", "DATASETS.PROPOSAL_FILES_TEST", f"('{file}',)"),
        *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"),
        *("SOLVER.IMS_PER_BATCH", "1", "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", "1"),
    )
    given = next(iter(build_train_loader(cfg)))[0]
    assert len(given["proposals"]) >= 1 and given["proposals"].image_size == (96, 128)
    (_, given), *_ = ((len(batch), batch[0]) for batch in build_test_loader(cfg, NAME))
    assert given["proposals"].proposal_boxes.tensor.tolist() == [[16, 20, 80, 80]], "not resized"
    assert [len(batch[0]["proposals"]) for batch in build_validation_loader(cfg)] == [1, 2, 1]
    cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    with pytest.raises(ValueError, match="DATASETS.PROPOSAL_FILES_TEST needs one for each"):
        build_test_loader(cfg, NAME)


@pytest.fixture
def search(monkeypatch):
    """In place of OpenCV's, which the plain package does not have: two boxes that depend on the image."""

    def boxes(image, mode, limit, size):
        value = float(image[20, 39:42, 0].sum())
        return np.array([[1, 2, 3 + value, 4], [0, 0, limit, size]], dtype=np.float32)

    monkeypatch.setattr(selective_search, "check_opencv", lambda: None)
    monkeypatch.setattr(selective_search, "selective_search", boxes)
    monkeypatch.setattr(selective_search, "_CHUNK", 1)


@pytest.mark.usefixtures("search")
def test_it_goes_on_after_an_interruption(dicts, tmp_path, monkeypatch):
    def interrupted(items, total):
        for count, _ in enumerate(items, 1):
            if count == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selective_search.make_proposals(dicts, tmp_path / "a.pkl", limit=9, progress=interrupted)
    assert not (tmp_path / "a.pkl").exists() and len(list((tmp_path / "a.pkl.parts").glob("*.npz"))) == 2
    read, real = [], selective_search.read_image
    monkeypatch.setattr(selective_search, "read_image", lambda *a: read.append(a[0]) or real(*a))
    bars = []

    def bar(items, total):
        bars.extend(items)
        return [total]

    assert selective_search.make_proposals(dicts, tmp_path / "a.pkl", limit=9, progress=bar)
    assert [name[-5:] for name in read] == ["2.png"] and len(bars) == 3
    assert not (tmp_path / "a.pkl.parts").exists()
    assert selective_search.make_proposals(dicts, tmp_path / "b.pkl", limit=9, workers=2)
    assert (tmp_path / "a.pkl").read_bytes() == (tmp_path / "b.pkl").read_bytes()
    assert not selective_search.make_proposals(dicts, tmp_path / "a.pkl", limit=9)
    with pytest.raises(FileExistsError, match="has other proposals .*choose another file, or --force"):
        selective_search.make_proposals(dicts, tmp_path / "a.pkl", limit=8)
    assert selective_search.make_proposals(dicts, tmp_path / "a.pkl", limit=8, force=True)
    assert read_proposals(tmp_path / "a.pkl")["boxes"][0][1].tolist() == [0, 0, 8, 500]


@pytest.mark.usefixtures("search")
def test_wrong_arguments(dicts, tmp_path):
    for arguments, message in (
        ({"mode": "slow"}, "mode must be fast or quality"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
        ({"output": tmp_path / "a.json"}, "ends with .pkl"),
        ({"dicts": []}, "there are no images"),
    ):
        with pytest.raises(ValueError, match=message):
            selective_search.make_proposals(**{"dicts": dicts, "output": tmp_path / "a.pkl", **arguments})


@pytest.mark.skipif(HAS_SEARCH, reason="OpenCV has its contrib modules")
def test_without_contrib_it_says_what_to_install(dicts, tmp_path):
    with pytest.raises(
        ValueError, match=r"pip install opencv-contrib-python-headless.*mrcnn_ext\[proposals\]"
    ):
        selective_search.make_proposals(dicts, tmp_path / "a.pkl")


@pytest.mark.skipif(not HAS_SEARCH, reason="needs opencv-contrib-python-headless (mrcnn_ext[proposals])")
def test_selective_search_finds_the_rectangle_every_time(dicts, tmp_path):
    image = cv2.imread(dicts[0]["file_name"])
    found = selective_search.selective_search(image)
    np.testing.assert_array_equal(found, selective_search.selective_search(image))
    large = cv2.resize(image, None, fx=10, fy=10, interpolation=cv2.INTER_NEAREST)
    for boxes, scale in ((found, 1), (selective_search.selective_search(large), 10)):
        wanted = np.array([8, 10, 40, 40]) * scale
        assert np.abs(boxes - wanted).max(axis=1).min() <= 2 * scale
    assert len(selective_search.selective_search(image, limit=1)) == 1
    selective_search.make_proposals(dicts, tmp_path / "a.pkl", mode="quality")
    assert proposal_recall(dicts, read_proposals(tmp_path / "a.pkl"), [None]) == [1.0]


def test_the_command(dicts, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from mrcnn_ext_command import command

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    if not HAS_SEARCH:
        monkeypatch.setattr(selective_search, "check_opencv", lambda: None)
        whole = np.array([[8, 10, 40, 40]], dtype=np.float32)
        monkeypatch.setattr(selective_search, "selective_search", lambda *a, **k: whole)
    result = CliRunner().invoke(command, ["datasets", "proposals", NAME, "--quiet"])
    assert result.exit_code == 0, result.output
    assert "3 images" in result.output and "100.0 % by all" in result.output
    assert torch.tensor(read_proposals(tmp_path / "proposals" / f"{NAME}.pkl")["boxes"][0]).shape[1] == 4
    again = CliRunner().invoke(command, ["datasets", "proposals", NAME, "--quiet"])
    assert "already complete" in again.output
    wrong = CliRunner().invoke(command, ["datasets", "proposals", "a.json"])
    assert wrong.exit_code == 2 and "needs --images and an OUTPUT" in wrong.output
