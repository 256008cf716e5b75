"""Clips: the same people from frame to frame, what is hidden told from what is seen, and the files."""

import json

import cv2
import numpy as np
import pytest

import mrcnn_ext_command
from mrcnn_ext.scenes import (
    KEYPOINT_NAMES,
    clip_of,
    generate_clip,
    get_clip_preset,
    get_preset,
    read_meta,
    write_clips,
    write_dataset,
)
from mrcnn_ext.scenes.motion import ACTIONS, Motion, Path
from mrcnn_ext.scenes.posetrack_format import POSETRACK_KEYPOINTS

SMALL = {"height": 96, "width": 128, "frames": 4}
PRESET = get_clip_preset("hard", **SMALL, shutter=(0.3, 0.5))


def files(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "clips"
    assert write_clips(root, PRESET, 5, 2, seed=3)
    return root


def read(root, name):
    return json.loads((root / "annotations" / name).read_text())


def test_same_bytes_for_any_number_of_workers_and_other_seeds_differ(root, tmp_path):
    write_clips(tmp_path / "two", PRESET, 5, 2, seed=3, workers=2)
    assert files(tmp_path / "two") == files(root)
    assert write_clips(root, PRESET, 5, 2, seed=3) is False
    with pytest.raises(FileExistsError, match="seed is 3, asked for 4.*--force"):
        write_clips(root, PRESET, 5, 2, seed=4)
    with pytest.raises(FileExistsError, match="preset.frames is 4, asked for 5"):
        write_clips(root, get_clip_preset("hard", **{**SMALL, "frames": 5}, shutter=(0.3, 0.5)), 5, 2, seed=3)
    frame = next(iter((tmp_path / "two" / "frames" / "train" / "00000").iterdir())).read_bytes()
    other = clip_of(PRESET, 4, "train", 0).scenes[0].image
    assert not np.array_equal(cv2.imdecode(np.frombuffer(frame, np.uint8), 1)[:, :, ::-1], other)


def test_a_track_is_one_object_from_frame_to_frame(root):
    content = read(root, "instances_train.json")
    assert [v["length"] for v in content["videos"]] == [4] * 5
    images = {i["id"]: i for i in content["images"]}
    assert [i["frame_index"] for i in content["images"]] == [0, 1, 2, 3] * 5
    tracks = {t["id"]: t for t in content["tracks"]}
    seen = {}
    for annotation in content["annotations"]:
        image, track = images[annotation["image_id"]], tracks[annotation["track_id"]]
        assert track["video_id"] == image["video_id"] == annotation["video_id"]
        assert track["category_id"] == annotation["category_id"]
        key = (annotation["track_id"], image["frame_index"])
        assert key not in seen, "one object of a track in a frame"
        seen[key] = annotation
    steps = [
        (np.array(seen[t, f]["bbox"]), np.array(seen[t, f + 1]["bbox"]))
        for t, f in seen
        if (t, f + 1) in seen and seen[t, f]["visible"] > 0.9 and seen[t, f + 1]["visible"] > 0.9
    ]
    assert len(steps) > 10
    for a, b in steps:
        moved = np.abs(a[:2] + a[2:] / 2 - b[:2] - b[2:] / 2)
        assert (moved < 0.5 * max(a[2:].max(), b[2:].max()) + 8).all(), "nobody jumps"
    persons = read(root, "person_keypoints_train.json")
    assert (
        {t["id"] for t in persons["tracks"]} == {a["track_id"] for a in persons["annotations"]} < set(tracks)
    )


def test_hidden_joints_are_told_from_seen_ones():
    counts = {1: 0, 2: 0}
    behind = 0
    for index in range(6):
        clip = generate_clip(PRESET, 5, index)
        for scene in clip.scenes:
            for k, instance in enumerate(scene.instances):
                if instance.keypoints is None:
                    continue
                for x, y, v in instance.keypoints:
                    if not v:
                        assert x == y == 0
                        continue
                    window = scene.instance_map[
                        max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2
                    ]
                    counts[int(v)] += 1
                    if v == 2:
                        assert (window == k + 1).any(), "a joint that is seen lies on its person"
                    behind += v == 1 and not (window == k + 1).any()
    assert counts[2] > counts[1] > 40 and behind > 20


@pytest.mark.parametrize("action", ACTIONS)
def test_people_move_without_jerks_and_knees_bend_one_way(action):
    motion = Motion(action, np.random.default_rng(1))
    if action not in ("waving", "pointing"):  # who waves may walk
        assert (motion.speed > 0) == (action not in ("jumping", "squatting"))
    before = None
    for t in np.arange(0, 2, 1 / 60):
        pose = motion.pose(t)
        angles = np.array(
            [pose.legs[s][k] for s in "LR" for k in (0, 1)] + [pose.arms[s][k] for s in "LR" for k in (0, 1)]
        )
        for s in "LR":
            assert pose.legs[s][1][0] <= pose.legs[s][0][0] + 4, "shins do not bend forward"
        if before is not None:
            assert np.abs(angles - before).max() < 25, "degrees in a sixtieth of a second"
        before = angles
    if action in ("walking", "running"):
        left, right = (
            np.array([motion.pose(t).legs[s][0][0] for t in np.arange(0, 2, 1 / 60)]) for s in "LR"
        )
        assert np.corrcoef(left, right)[0, 1] < -0.99, "legs take turns"
    with pytest.raises(ValueError, match="action must be one of .*'walking'.*got 'flying'"):
        Motion("flying", np.random.default_rng(0))


def test_a_path_goes_at_its_speed_and_looks_ahead():
    path = Path(0.0, 9.0, 0.4, 2.0, 0.5, 1.0)
    a, b = path.frame(1.0), path.frame(1.01)
    step = b.origin - a.origin
    assert np.linalg.norm(step) == pytest.approx(0.02, rel=1e-3)
    assert np.dot(step / np.linalg.norm(step), a.axes[0]) > 0.999


def sharpness(image):
    return cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).std()


def test_what_makes_a_clip_hard_is_in_the_picture_and_in_its_record():
    easy = {"noise": 0.0, "lens": 0.0, "night": 0.0, "dusk": 0.0, **SMALL}
    moving = {"weights": {"running": 1}, "camera": 1.0}
    sharp = generate_clip(get_clip_preset("clean", **easy, **moving), 1, 0)
    blurred = generate_clip(get_clip_preset("clean", **easy, **moving, blur=1.0, shutter=(1, 1)), 1, 0)
    assert sharp.conditions["shutter"] == 0 and blurred.conditions["shutter"] == 1
    assert np.mean([sharpness(s.image) for s in blurred.scenes]) < 0.9 * np.mean(
        [sharpness(s.image) for s in sharp.scenes]
    )
    assert np.array_equal(sharp.scenes[1].instances[0].keypoints, blurred.scenes[1].instances[0].keypoints)
    changing = [generate_clip(get_clip_preset("clean", **easy, exposure=1.0), 2, k) for k in range(4)]
    for clip in changing:
        means = [np.log(s.image.mean()) for s in clip.scenes]
        gains = np.log(clip.conditions["gains"])
        assert np.abs(gains).max() > 0.05 and np.corrcoef(means, gains)[0, 1] > 0.9
    hidden = generate_clip(get_clip_preset("clean", **easy, occluders=(3, 3)), 1, 0)
    assert hidden.conditions["occluders"] == 3
    assert min(s.instances[0].visible if s.instances else 0 for s in hidden.scenes) < 1


def test_a_moving_camera_moves_ground_and_people_together():
    """The backdrop is warped, people are drawn: both must go through the same projection."""
    from mrcnn_ext.scenes.clip_camera import CameraPath
    from mrcnn_ext.scenes.geometry import Camera

    still = Camera(200.0, 64.0, 40.0, 1.6, 96, 128)
    path = CameraPath(
        still, "panning", np.array([0.0, 1.0]), np.array([-12.0, 20.0]), np.full((2, 3, 3), 0.7), 0.3
    )
    wide = path.wide
    spots = np.array([[0.3, 6.0, 0.7], [-0.6, 7.0, 0.5], [0.9, 9.0, 1.0]])
    picture = np.zeros((wide.image_height, wide.image_width), np.float32)
    for x, y in wide.project(spots):
        cv2.circle(
            picture,
            (int(round((x - 0.5) * 16)), int(round((y - 0.5) * 16))),
            3 * 16,
            255.0,
            -1,
            cv2.LINE_AA,
            4,
        )
    for t in (0.1, 0.8):
        camera = path.at(t)
        seen = path.look(picture, camera)
        for x, y in camera.project(spots):
            ys, xs = np.mgrid[0:96, 0:128] + 0.5
            near = seen * (np.hypot(xs - x, ys - y) < 6)
            assert near.sum() > 255 * 15
            assert np.average(xs, weights=near) == pytest.approx(x, abs=0.15)
            assert np.average(ys, weights=near) == pytest.approx(y, abs=0.15)


def test_posetrack_files_hold_the_same_people(root):
    persons = read(root, "person_keypoints_train.json")
    by_file = {i["file_name"]: i["id"] for i in persons["images"]}
    people = 0
    for path in sorted((root / "posetrack" / "train").iterdir()):
        content = json.loads(path.read_text())
        assert content["categories"][0]["keypoints"] == list(POSETRACK_KEYPOINTS)
        names = {i["id"]: i["file_name"] for i in content["images"]}
        assert all(i["is_labeled"] and (root / i["file_name"]).is_file() for i in content["images"])
        for annotation in content["annotations"]:
            people += 1
            points = dict(zip(POSETRACK_KEYPOINTS, np.reshape(annotation["keypoints"], (-1, 3)), strict=True))
            twin = next(
                a
                for a in persons["annotations"]
                if a["image_id"] == by_file[names[annotation["image_id"]]] and a["bbox"] == annotation["bbox"]
            )
            theirs = dict(zip(KEYPOINT_NAMES, np.reshape(twin["keypoints"], (-1, 3)), strict=True))
            for name, (x, y, v) in theirs.items():
                if name.endswith(("_eye", "_ear")):
                    continue
                assert points[name][2] == (v == 2)
                if v == 2:
                    assert points[name][:2] == pytest.approx([x, y], abs=0.06)
            if points["head_top"][2] and points["nose"][2]:
                x0, y0, w, h = annotation["bbox_head"]
                assert x0 < points["nose"][0] < x0 + w and y0 < points["nose"][1] < y0 + h
    assert people == len(persons["annotations"]) > 20


def test_command_writes_clips_and_their_sheet(tmp_path, capsys):
    out, sheet = tmp_path / "clips", tmp_path / "sheet.png"
    command = ["datasets", "scenes", str(out), "--clips", "--train", "1", "--val", "1", "--frames", "3"]
    command += ["--size", "64x96", "--preset", "clean"]
    mrcnn_ext_command.main([*command, "--contact-sheet", str(sheet), "--sheet-images", "6"])
    assert "written" in capsys.readouterr().out and read_meta(out)["preset"]["width"] == 96
    assert cv2.imread(str(sheet)).shape == (2 * 64 * 2 + 4, 3 * 96 * 2 + 8, 3)
    mrcnn_ext_command.main(command)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        mrcnn_ext_command.main(["datasets", "scenes", str(tmp_path / "x"), "--frames", "3"])
    assert stop.value.code == 2 and "--frames is for --clips" in capsys.readouterr().err


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: get_clip_preset("street"), "unknown clip preset 'street'; presets: clips, clean, hard"),
        (lambda: get_clip_preset("clips", fps=3), "unknown clip preset fields \\['fps'\\]; fields: .*rate"),
        (lambda: get_clip_preset("clips", frames=0), "frames must be at least 1, got 0"),
        (lambda: get_clip_preset("clips", blur=1.5), "blur is a fraction of the clips, 0 to 1, got 1.5"),
        (
            lambda: get_clip_preset("clips", people=(3, 1)),
            "people must be \\(least, greatest\\) in rising order",
        ),
        (
            lambda: get_clip_preset("clips", weights={"swimming": 1}),
            "weights has unknown actions \\['swimming'\\]; known: .*'walking'",
        ),
        (
            lambda: get_clip_preset("clips", weights={}),
            "weights must be frequencies of 0 or more, some above 0",
        ),
        (
            lambda: get_clip_preset("clips", weights={"walking": 2, "running": -1}),
            "weights must be frequencies of 0 or more, some above 0",
        ),
        (lambda: get_clip_preset("clips", night=0.7, dusk=0.4), "of a sum of 1 at most, got 0.7 and 0.4"),
        (lambda: get_clip_preset("clips", noise=-1.0), "noise is a standard deviation, 0 or more, got -1.0"),
        (
            lambda: get_clip_preset("clips", min_visible=2),
            "min_visible is a fraction of a person, 0 to 1, got 2",
        ),
        (lambda: get_clip_preset("clips", min_area=0), "min_area must be at least 1 pixel, got 0"),
        (lambda: write_clips("x", num_train=-1), "num_train must be at least 0, got -1"),
        (lambda: write_clips("x", num_train=0, num_val=0), "there is nothing to write"),
    ],
)
def test_wrong_arguments_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_scenes_do_not_replace_clips(root):
    with pytest.raises(FileExistsError, match="generator is 'mrcnn_ext.scenes.clips'"):
        write_dataset(root, get_preset("easy"), 1, 1)


@pytest.mark.detectron2
def test_registered_clips_keep_videos_and_tracks(root):
    pytest.importorskip("detectron2")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mrcnn_ext.data import load_dataset, register_clips

    assert {"clips_train", "clips_person_val"} <= set(DatasetCatalog.list())
    register_clips(root, "test_clips")
    try:
        dicts = load_dataset("test_clips_person_train")
        content = read(root, "person_keypoints_train.json")
        assert [(d["video_id"], d["frame_index"]) for d in dicts] == [
            (i["video_id"], i["frame_index"]) for i in content["images"]
        ]
        tracks = {a["id"]: a["track_id"] for a in content["annotations"]}
        loaded = {a["id"]: a["track_id"] for d in dicts for a in d["annotations"]}
        assert loaded == tracks
        assert MetadataCatalog.get("test_clips_person_train").keypoint_names == list(KEYPOINT_NAMES)
    finally:
        for name in list(DatasetCatalog.list()):
            if name.startswith("test_clips"):
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
