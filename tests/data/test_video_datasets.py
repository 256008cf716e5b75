"""Video datasets in their publishers' layouts, made here: read, registered, checked and evaluated."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

scipy_io = pytest.importorskip("scipy.io")

from mrcnn_ext.data.convert import convert_dataset  # noqa: E402
from mrcnn_ext.data.report import FINE, report_dataset  # noqa: E402
from mrcnn_ext.data.video import (  # noqa: E402
    read_bbc_pose,
    read_jhmdb,
    read_penn_action,
    read_posetrack18,
)
from mrcnn_ext.data.video.bbc_pose import BBC_KEYPOINTS  # noqa: E402
from mrcnn_ext.data.video.jhmdb import JHMDB_KEYPOINTS  # noqa: E402
from mrcnn_ext.data.video.penn_action import PENN_KEYPOINTS  # noqa: E402
from mrcnn_ext.scenes import get_clip_preset, write_clips  # noqa: E402

H, W = 60, 80


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H), (90, 90, 90)).save(path)


def joints(count, frames, seed):
    """(2, count, frames) in MATLAB's pixels, whose first is 1."""
    rng = np.random.default_rng(seed)
    start = rng.uniform([[15], [15]], [[60], [45]], (2, count))
    return np.round(start[:, :, None] + np.arange(frames) + 1, 2)


@pytest.fixture(scope="module")
def penn(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "Penn_Action"
    (root / "labels").mkdir(parents=True)
    for number, (train, frames) in enumerate([(1, 3), (-1, 2), (1, 2)], 1):
        x, y = joints(13, frames, number).transpose(0, 2, 1)
        seen = np.ones((frames, 13))
        seen[0, 4] = seen[1, 5] = 0
        x[1, 5] = y[1, 5] = 1  # nobody could place it
        boxes = np.stack([x.min(1) - 5, y.min(1) - 5, x.max(1) + 5, y.max(1) + 5], 1)[
            : frames - (number == 3)
        ]
        scipy_io.savemat(
            root / "labels" / f"{number:04d}.mat",
            {
                "action": "squat",
                "pose": "front",
                "x": x,
                "y": y,
                "visibility": seen,
                "train": train,
                "bbox": boxes,
                "dimensions": [[H, W, frames]],
                "nframes": frames,
            },
        )
        for frame in range(frames):
            picture(root / "frames" / f"{number:04d}" / f"{frame + 1:06d}.jpg")
    return root


@pytest.fixture(scope="module")
def bbc(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "bbc_pose"
    fields = ("videoName", "type", "source", "train_frames", "train_joints", "test_frames", "test_joints")
    structs = np.zeros((1, 4), dtype=[(name, object) for name in fields])
    none = np.zeros((0, 0))
    for k, (kind, source) in enumerate(
        [("train", "buehler11"), ("val", "buehler11"), ("test", "buehler11"), ("train", "charles13")]
    ):
        frames = np.array([[3.0, 7.0]])
        places = joints(7, 2, k)
        hand = (frames, places) if kind == "test" else (none, none)
        for name, value in zip(fields, (f"video{k}", kind, source, frames, places + 1, *hand), strict=True):
            structs[name][0, k] = value
        for frame in (3, 7):
            picture(root / str(k + 1) / f"{frame}.jpg")
    (root / "code").mkdir()
    scipy_io.savemat(root / "code" / "bbcpose.mat", {"bbcpose": structs})
    return root


@pytest.fixture(scope="module")
def jhmdb(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "JHMDB"
    lines, sub = [], []
    for k, frames in enumerate((3, 1, 2)):
        clip = f"clip_{k}"
        for kind in ("joint_positions", "puppet_mask"):
            (root / kind / "wave" / clip).mkdir(parents=True)
        places = joints(15, frames, k)
        if k == 0:
            places[:, 3, 0] = (-9, 5)  # out of view
        scipy_io.savemat(
            root / "joint_positions" / "wave" / clip / "joint_positions.mat",
            {"pos_img": places, "pos_world": places / 100, "scale": np.ones((1, frames))},
        )
        if k != 2:
            mask = np.zeros((H, W, frames), np.uint8)
            mask[10:50, 20:45] = 1
            scipy_io.savemat(root / "puppet_mask" / "wave" / clip / "puppet_mask.mat", {"part_mask": mask})
        for frame in range(frames):
            picture(root / "Rename_Images" / "wave" / clip / f"{frame + 1:05d}.png")
        lines.append(f"{clip}.avi {1 if k < 2 else 2}")
        sub.append(f"{clip}.avi {1 if k == 0 else 2 if k == 2 else 0}")
    for folder, name, content in (
        ("splits", "wave_test_split1.txt", lines),
        ("sub_splits", "wave_test_split_1.txt", sub),
    ):
        (root / folder).mkdir()
        (root / folder / name).write_text("\n".join(content) + "\n")
    return root


@pytest.fixture(scope="module")
def posetrack(tmp_path_factory):
    """PoseTrack18's own layout, made of clips' files."""
    base = tmp_path_factory.mktemp("data")
    clips, root = base / "clips", base / "posetrack18"
    write_clips(clips, get_clip_preset("clean", height=H, width=W, frames=3, people=(2, 2)), 2, 1, seed=4)
    for split in ("train", "val"):
        (root / "annotations" / split).mkdir(parents=True)
        for path in (clips / "posetrack" / split).iterdir():
            content = json.loads(path.read_text())
            content["images"][1]["is_labeled"] = False
            content["annotations"] = [
                a for a in content["annotations"] if a["image_id"] != content["images"][1]["id"]
            ]
            content["images"][0] |= {
                "ignore_regions_x": [[1, 11, 11]],
                "ignore_regions_y": [[2, 2, 22]],
            }
            (root / "annotations" / split / path.name).write_text(json.dumps(content))
        (root / "frames").mkdir(exist_ok=True)
        (clips / "frames" / split).rename(root / "frames" / split)
    return root


def points(annotation):
    return np.reshape(annotation["keypoints"], (-1, 3))


def test_penn_action(penn):
    content = read_penn_action(penn, "train")
    assert [v["name"] for v in content["videos"]] == ["0001", "0003"]
    assert [v["action"] for v in content["videos"]] == ["squat"] * 2
    assert [(i["video_id"], i["frame_index"]) for i in content["images"]] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
    ]
    assert content["images"][3]["file_name"] == "frames/0003/000001.jpg"
    assert len({a["track_id"] for a in content["annotations"]}) == 2
    first, second = content["annotations"][:2]
    truth = joints(13, 3, 1)
    assert points(first)[:, :2] == pytest.approx(truth[:, :, 0].T - 1)
    assert list(points(first)[:, 2]) == [2, 2, 2, 2, 1, *[2] * 8], "not visible, yet in the image"
    assert list(points(second)[5]) == [0, 0, 0] and second["num_keypoints"] == 12
    x, y = truth[:, :, 0] - 1
    assert first["bbox"] == pytest.approx([x.min() - 5, y.min() - 5, np.ptp(x) + 11, np.ptp(y) + 11])
    # Its last frame has no box: that of the joints and a margin.
    x, y = joints(13, 2, 3)[:, :, 1] - 1
    box = content["annotations"][-1]["bbox"]
    assert box[0] <= x.min() and box[0] + box[2] >= x.max() and box[2] < 80
    assert len(read_penn_action(penn, "test")["images"]) == 2
    assert len(read_penn_action(penn)["images"]) == 7
    assert content["categories"][0]["keypoints"] == list(PENN_KEYPOINTS) and len(PENN_KEYPOINTS) == 13


def test_bbc_pose(bbc):
    train, test = read_bbc_pose(bbc, "train"), read_bbc_pose(bbc, "test")
    assert [v["name"] for v in train["videos"]] == ["video0"], "the extended dataset's are left out"
    assert [i["file_name"] for i in train["images"]] == ["1/3.jpg", "1/7.jpg"]
    assert [i["frame_index"] for i in train["images"]] == [2, 6]
    # Test videos have joints by hand; training videos those of the tracker.
    assert points(test["annotations"][0])[:, :2] == pytest.approx(joints(7, 2, 2)[:, :, 0].T - 1)
    assert points(train["annotations"][0])[:, :2] == pytest.approx(joints(7, 2, 0)[:, :, 0].T)
    for annotation in train["annotations"]:
        x0, y0, w, h = annotation["bbox"]
        x, y, _ = points(annotation).T
        assert (x > x0).all() and (x < x0 + w).all() and (y > y0).all() and (y < y0 + h).all()
    assert train["categories"][0]["keypoints"] == list(BBC_KEYPOINTS)
    assert len(read_bbc_pose(bbc)["videos"]) == 3


def test_jhmdb(jhmdb):
    train = read_jhmdb(jhmdb, "train_1")
    assert [v["name"] for v in train["videos"]] == ["wave/clip_0", "wave/clip_1"]
    assert [v["length"] for v in train["videos"]] == [3, 1]
    first = train["annotations"][0]
    assert first["bbox"] == [20, 10, 25, 40] and first["area"] == 1000, "those of the puppet mask"
    assert list(points(first)[3]) == [0, 0, 0] and points(first)[4, :2] == pytest.approx(
        joints(15, 3, 0)[:, 4, 0] - 1
    )
    assert "segmentation" in first
    test = read_jhmdb(jhmdb, "test_1")
    assert "segmentation" not in test["annotations"][0], "it has no puppet mask on disk"
    assert [v["name"] for v in read_jhmdb(jhmdb, "sub_train_1")["videos"]] == ["wave/clip_0"]
    assert [v["name"] for v in read_jhmdb(jhmdb, "sub_test_1")["videos"]] == ["wave/clip_2"]
    assert len(read_jhmdb(jhmdb)["videos"]) == 3
    assert train["categories"][0]["keypoints"] == list(JHMDB_KEYPOINTS) and len(JHMDB_KEYPOINTS) == 15


def test_posetrack18(posetrack):
    content = read_posetrack18(posetrack, "train")
    assert [v["length"] for v in content["videos"]] == [2, 2], "the second frame is not labelled"
    assert [i["frame_index"] for i in content["images"]] == [0, 2, 0, 2]
    assert [i["id"] for i in content["images"]] == [10000, 10002, 20000, 20002]
    people = [a for a in content["annotations"] if not a["iscrowd"]]
    regions = [a for a in content["annotations"] if a["iscrowd"]]
    assert [a["bbox"] for a in regions] == [[1, 2, 10, 20]] * 2
    assert {v for a in people for v in a["keypoints"][2::3]} == {0, 2}
    raw = json.loads((posetrack / "annotations" / "train" / "00000.json").read_text())
    for annotation in raw["annotations"]:
        twin = next(
            a for a in people if a["image_id"] == annotation["image_id"] and a["bbox"] == annotation["bbox"]
        )
        ours, theirs = points(twin), points(annotation)
        seen = theirs[:, 2] == 1
        assert (
            ours[seen, :2] == pytest.approx(theirs[seen, :2]) and (ours[:, 2] > 0).tolist() == seen.tolist()
        )
    tracks = {}
    for a in people:
        tracks.setdefault(a["track_id"], set()).add(a["video_id"])
    assert len(tracks) == 4 and all(len(videos) == 1 for videos in tracks.values())
    # All splits at once: ids of train and val must not be the same.
    every = read_posetrack18(posetrack)
    assert len({i["id"] for i in every["images"]}) == len(every["images"]) == 6


@pytest.mark.parametrize(
    "part, key", [("annotations", "track_id"), ("annotations", "keypoints"), ("images", "id")]
)
def test_posetrack18_without_a_key(posetrack, tmp_path, part, key):
    shutil.copytree(posetrack, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "train" / "00000.json"
    content = json.loads(path.read_text())
    del content[part][0][key]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"00000.json cannot be read as a sequence.*KeyError: '{key}'"):
        read_posetrack18(tmp_path / "data", "train")


@pytest.mark.parametrize("kind", ["penn", "bbc", "jhmdb", "posetrack"])
def test_a_converted_file_passes_the_check_of_custom_data(kind, request, tmp_path, capsys):
    root = request.getfixturevalue(kind)
    name = {"penn": "penn_action", "bbc": "bbc_pose", "posetrack": "posetrack18"}.get(kind, kind)
    split = "train_1" if kind == "jhmdb" else "train"
    done = convert_dataset(name, str(root), str(tmp_path / "coco.json"), split)
    assert done.images == len(json.loads((tmp_path / "coco.json").read_text())["images"]) > 1
    code = report_dataset(done.annotations, images=done.image_root, progress=False)
    assert code == FINE, capsys.readouterr().out


@pytest.mark.parametrize(
    "value, message",
    [
        ({"train": []}, "0001.mat cannot be read as the labels .*IndexError"),
        ({"train": "yes"}, "0001.mat cannot be read as the labels .*could not convert string"),
        ({"dimensions": [[H, W]]}, "0001.mat cannot be read as the labels .*not enough values"),
        ({"bbox": [1.0, 2, 3, 4, 5]}, "0001.mat cannot be read as the labels .*cannot reshape"),
        ({"x": np.zeros((3, 12))}, r"0001.mat: x, y and visibility must be \(3, 13\)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_penn_action_with_other_content(penn, tmp_path, value, message):
    shutil.copytree(penn, tmp_path / "data")
    path = tmp_path / "data" / "labels" / "0001.mat"
    scipy_io.savemat(path, {**scipy_io.loadmat(path), **value})
    with pytest.raises(ValueError, match=message):
        read_penn_action(tmp_path / "data")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content.update(categories=["person"]), "AttributeError"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "IndexError"),
        (lambda content: content["images"][0].update(id="first"), "TypeError"),
        (lambda content: content.pop("categories"), "KeyError: 'categories'"),
    ],
    ids=["categories", "bbox", "id", "none"],
)
def test_posetrack18_with_other_content(posetrack, tmp_path, change, message):
    shutil.copytree(posetrack, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "train" / "00000.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"00000.json cannot be read as a sequence.*{message}"):
        read_posetrack18(tmp_path / "data")


def test_joints_that_are_no_numbers_name_their_file(jhmdb, bbc, tmp_path):
    shutil.copytree(jhmdb, tmp_path / "jhmdb")
    path = tmp_path / "jhmdb" / "joint_positions" / "wave" / "clip_0" / "joint_positions.mat"
    scipy_io.savemat(path, {"pos_img": "nobody"})
    with pytest.raises(ValueError, match="joint_positions.mat cannot be read as the joints of a clip"):
        read_jhmdb(tmp_path / "jhmdb")
    shutil.copytree(bbc, tmp_path / "bbc")
    path = tmp_path / "bbc" / "code" / "bbcpose.mat"
    structs = scipy_io.loadmat(path)["bbcpose"]
    structs["train_joints"][0, 1] = "nobody"
    scipy_io.savemat(path, {"bbcpose": structs})
    with pytest.raises(
        ValueError, match="bbcpose.mat cannot be read as BBC Pose: video 2 .*could not convert"
    ):
        read_bbc_pose(tmp_path / "bbc")


def test_missing_and_wrong_files_are_named(penn, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="frames: there is no such .* layout is .*0001.mat.*dreamdragon"
    ):
        read_penn_action(tmp_path)
    with pytest.raises(FileNotFoundError, match="bbcpose.mat: there is no such .*robots.ox.ac.uk"):
        read_bbc_pose(tmp_path)
    with pytest.raises(FileNotFoundError, match="joint_positions: there is no such"):
        read_jhmdb(tmp_path)
    with pytest.raises(FileNotFoundError, match="annotations: there is no such .*posetrack.net"):
        read_posetrack18(tmp_path)
    with pytest.raises(ValueError, match="Penn Action has the splits 'train' and 'test', not 'val'"):
        read_penn_action(penn, "val")
    with pytest.raises(ValueError, match="JHMDB has the splits .*, not 'train_4'"):
        read_jhmdb(tmp_path, "train_4")
    (tmp_path / "frames").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0001.mat").write_bytes(b"no mat file at all")
    with pytest.raises(ValueError, match="0001.mat cannot be read as a MATLAB file"):
        read_penn_action(tmp_path)
    scipy_io.savemat(tmp_path / "labels" / "0001.mat", {"x": 1})
    with pytest.raises(
        ValueError, match="0001.mat has no 'y', 'visibility', 'train', 'dimensions'; it has x"
    ):
        read_penn_action(tmp_path)


@pytest.mark.detectron2
def test_what_is_on_disk_is_registered_and_can_be_evaluated(penn):
    pytest.importorskip("detectron2")
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import Boxes, Instances

    from mrcnn_ext.data import load_dataset, register_video_dataset, register_videos_on_disk
    from mrcnn_ext.evaluation import COCOEvaluator

    known = set(DatasetCatalog.list())
    try:
        names = register_videos_on_disk(str(penn.parent))
        assert names == ["penn_action_train", "penn_action_test"]
        assert register_videos_on_disk(str(penn.parent)) == names
        with pytest.raises(ValueError, match="already registered for .*give another prefix"):
            register_video_dataset("penn_action", "/elsewhere")
        with pytest.raises(ValueError, match="kind must be one of penn_action, bbc_pose.*got 'lsp'"):
            register_video_dataset("lsp", str(penn))
        dicts = load_dataset("penn_action_train")
        assert [d["frame_index"] for d in dicts] == [0, 1, 2, 0, 1]
        metadata = MetadataCatalog.get("penn_action_train")
        assert ("left_wrist", "right_wrist") in metadata.keypoint_flip_map
        assert metadata.keypoint_oks_sigmas[5] == 0.062
        evaluator = COCOEvaluator("penn_action_train", ("bbox", "keypoints"), False)
        evaluator.reset()
        for record in dicts:
            (truth,) = record["annotations"]
            x, y, w, h = truth["bbox"]
            found = Instances((H, W))
            found.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]]))
            found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([0])
            found.pred_keypoints = torch.tensor(truth["keypoints"]).reshape(1, -1, 3)
            evaluator.process([record], [{"instances": found}])
        results = evaluator.evaluate()
        assert results["keypoints"]["AP"] == pytest.approx(100)
        assert results["pck"]["PCK@0.2"] == results["pck"]["PCK@0.2-left_wrist"] == 100
        assert results["pck"]["jitter"] == pytest.approx(0, abs=1e-4)
        assert {a["track_id"] for a in evaluator.truth.anns.values()} == {1, 2}
    finally:
        for name in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
