"""What predict writes besides COCO results: other formats, pictures, cut-outs, masks, LabelMe files, videos."""

import csv
import errno
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from click.testing import CliRunner

pytest.importorskip("detectron2")
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from mrcnn_ext.cli import predict as cli
from mrcnn_ext.data.convert.labelme import read_labelme
from mrcnn_ext.data.convert.mask_folder import read_mask_folder
from mrcnn_ext.engine import UserError
from mrcnn_ext.files import DiskFullError
from mrcnn_ext.inference import load_predictor, outputs, pipeline, predict, predictions
from mrcnn_ext.inference.drawing import Style
from mrcnn_ext.inference.filters import make_filter
from mrcnn_ext.inference.tracking import Tracker
from mrcnn_ext.inference.video_output import VideoFile

QUIET = {"progress": False, "accelerate": False}


@pytest.fixture
def predictor(cfg):
    return load_predictor(cfg)


@pytest.fixture
def pictures(tmp_path, scenes):
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for i, record in enumerate(DatasetCatalog.get(scenes)[:3]):
        picture = cv2.imread(record["file_name"])
        cv2.imwrite(str(folder / ("a.png", "a.jpg", "more/b.png")[i]), picture)
    return folder


@pytest.fixture
def video(scenes, tmp_path):
    path = str(tmp_path / "street.avi")
    frame = cv2.imread(DatasetCatalog.get(scenes)[0]["file_name"])
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 8, frame.shape[1::-1])
    for i in range(5):
        writer.write(np.roll(frame, 2 * i, axis=1))
    writer.release()
    return path


def coco(path):
    return json.loads(path.read_text())


def test_json_lines_and_tables_hold_what_the_coco_results_hold(predictor, pictures, tmp_path, scenes):
    for suffix in ("json", "jsonl", "csv"):
        summary = predict(predictor, pictures, tmp_path / f"out.{suffix}", **QUIET)
        assert predict(predictor, pictures, tmp_path / f"out.{suffix}", **QUIET)["continued"] == 3
    records = coco(tmp_path / "out.json")
    assert len(records) == summary["results"] > 0
    names = {c["id"]: c["name"] for c in json.loads((tmp_path / "out.images.json").read_text())["categories"]}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["file_name"] for line in lines] == ["a.jpg", "a.png", "more/b.png"]
    found = [{"image_id": line["image_id"], **record} for line in lines for record in line["detections"]]
    for record in found:
        assert record.pop("category") == names[record["category_id"]]
    assert found == records
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    points = MetadataCatalog.get(scenes).keypoint_names
    for row, record in zip(rows, records, strict=True):
        assert (int(row["image_id"]), row["category"]) == (record["image_id"], names[record["category_id"]])
        assert [float(row[key]) for key in ("x", "y", "width", "height")] == record["bbox"]
        assert float(row[f"{points[1]}_y"]) == record["keypoints"][4]
    with pytest.raises(UserError, match="results must end with .json, .jsonl, .csv"):
        predict(predictor, pictures, tmp_path / "out.xml", **QUIET)


def test_filters(predictor, pictures, tmp_path):
    everything = {r["image_id"]: i for r, i in predictions(predictor, pictures, accelerate=False)}
    name = predictor.metadata.thing_classes[int(everything[1].pred_classes[0])]
    for record, instances in predictions(predictor, pictures, accelerate=False, only=name.upper(), top_k=2):
        expected = everything[record["image_id"]]
        expected = expected[expected.pred_classes == everything[1].pred_classes[0]][:2]
        assert instances.scores.tolist() == expected.scores.tolist()
    assert len(list(predictions(predictor, pictures, accelerate=False, limit=2))) == 2
    kinds = {0: {"id": 5, "name": "car"}, 1: {"id": 9, "name": "sky, blue"}, 2: {"id": 11, "name": "person"}}
    assert make_filter(kinds, only=["person,5"]).labels == (0, 2)
    assert make_filter(kinds, only=["sky, blue"]).labels == (1,) and make_filter({}, only=[3]).labels == (3,)
    for options, message in (
        ({"only": ["persn"]}, r"no class 'persn'; did you mean person\? Its classes: car \(5\), sky"),
        ({"min_score": 50}, "min_score must be from 0 to 1, got 50"),
        ({"top_k": -1}, "top_k must be at least 1, or 0 for all"),
    ):
        with pytest.raises(ValueError, match=message):
            make_filter(kinds, **options)


def test_cutouts_masks_and_labelme(predictor, pictures, tmp_path, scenes):
    folders = {kind: tmp_path / kind for kind in ("cutouts", "masks", "labelme")}
    predict(predictor, pictures, tmp_path / "out.json", **folders, picture_score=0.0, **QUIET)
    results = coco(tmp_path / "out.json")
    names = predictor.metadata.thing_classes
    ids = {id: names[k] for id, k in predictor.metadata.thing_dataset_id_to_contiguous_id.items()}
    found = [r for r in results if r["image_id"] == 3]  # of more/b.png
    whole = [mask_util.decode(r["segmentation"]).astype(bool) for r in found]
    picture = cv2.imread(str(pictures / "more" / "b.png"))
    for number, (record, mask) in enumerate(zip(found, whole, strict=True), 1):
        name = ids[record["category_id"]]
        written = cv2.imread(str(tmp_path / "masks" / name / "more" / f"b_{number:03d}.png"), -1)
        assert ((written == 255) == mask).all() and set(np.unique(written)) <= {0, 255}
        cut = cv2.imread(str(tmp_path / "cutouts" / "more" / f"b_{number:03d}_{name}.png"), -1)
        if not mask.any():
            assert cut is None
            continue
        assert cut.shape[2] == 4 and abs((cut[:, :, 3] / 255).sum() - mask.sum()) < 0.1 * mask.sum() + 10
        assert cut.shape[0] <= picture.shape[0] and cut.shape[1] <= picture.shape[1]
    # a.png and a.jpg have one stem
    assert {path.name for path in folders["labelme"].iterdir()} == {"a_png.json", "a_jpg.json", "more"}
    # The masks and LabelMe's files are read back by the converters.
    read = read_labelme(str(tmp_path / "labelme" / "more"))
    (image,) = list(read.images)
    assert sorted(one.category for one in image.objects) == sorted(ids[r["category_id"]] for r in found)
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "images").symlink_to(pictures / "more")
    (tmp_path / "converted" / "masks").symlink_to(folders["masks"])
    for path in folders["masks"].glob("*/a_*.png"):
        path.unlink()
    (image,) = list(read_mask_folder(str(tmp_path / "converted")).images)
    assert len(image.objects) == sum(bool(mask.any()) for mask in whole)


def detected(category, score):
    rle = mask_util.encode(np.asfortranarray(np.eye(20, dtype=np.uint8)))
    return {"category_id": category, "bbox": [0, 0, 20, 20], "score": score, "segmentation": rle}


@pytest.mark.parametrize("names", [{}, {3: "a car", 7: "bus"}])
def test_files_of_another_score_go_and_those_of_other_images_stay(tmp_path, names):
    def write(min_score):
        options = outputs.OutputOptions(
            cutouts=str(tmp_path / "c"), masks=str(tmp_path / "m"), min_score=min_score
        )
        made = outputs.ImageOutputs(options, names, Metadata(), SimpleNamespace(root=None))
        for image in ("a", "a_001"):
            about = {"file_name": f"{image}.png", "id": 1}
            made.write(np.zeros((20, 20, 3), np.uint8), about, "", [detected(3, 0.9), detected(7, 0.4)])
        return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")}

    car, bus = ("a_car", "bus") if names else ("3", "7")
    likely = {f"c/{image}_001_{car}.png" for image in ("a", "a_001")}
    likely |= {f"m/{car}/{image}_001.png" for image in ("a", "a_001")}
    every = likely | {f"c/{image}_002_{bus}.png" for image in ("a", "a_001")}
    every |= {f"m/{bus}/{image}_002.png" for image in ("a", "a_001")}
    assert write(0.0) == every
    assert write(0.5) == likely
    assert write(0.0) == every


def test_labelme_polygons_are_the_mask(tmp_path):
    y, x = np.mgrid[:100, :120]
    mask = (y - 40) ** 2 + (x - 60) ** 2 < 900
    one = outputs.Detection(0, "disc", 0.9, np.zeros(4), mask[10:71, 30:91], (30, 10))
    (polygon,) = outputs._polygons(one)
    assert len(polygon) < 40
    rle = mask_util.frPyObjects([[v for point in polygon for v in point]], 100, 120)
    found = mask_util.decode(rle)[..., 0].astype(bool)
    assert (found & mask).sum() / (found | mask).sum() > 0.94


def test_pictures_are_drawn_anew_from_the_results(predictor, pictures, tmp_path, monkeypatch):
    options = {"pictures": tmp_path / "drawn", "cutouts": tmp_path / "cut"}
    predict(predictor, pictures, tmp_path / "out.json", **options, picture_score=0.0, **QUIET)
    cuts = sorted(path.name for path in (tmp_path / "cut").iterdir())
    before = {path: path.read_bytes() for path in (tmp_path / "drawn").rglob("*.*")}
    scores = sorted(record["score"] for record in coco(tmp_path / "out.json"))

    def fail(*args):
        raise AssertionError("the model is not needed")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_predict", fail)
        again = predict(predictor, pictures, tmp_path / "out.json", **options, picture_score=0.0, **QUIET)
        assert again["drawn"] == 0
        half = scores[len(scores) // 2]
        again = predict(predictor, pictures, tmp_path / "out.json", **options, picture_score=half, **QUIET)
        assert again["drawn"] == 3
        assert {path for path in before if path.read_bytes() != before[path]}
        assert len(list((tmp_path / "cut").iterdir())) < len(cuts), "cut-outs of another score stay"
        again = predict(predictor, pictures, tmp_path / "out.json", **options, picture_score=0.0, **QUIET)
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == cuts
    predict(predictor, pictures, tmp_path / "out.csv", **QUIET)
    with pytest.raises(UserError, match="out.csv: a CSV file does not hold masks, so nothing can be drawn"):
        predict(predictor, pictures, tmp_path / "out.csv", **options, **QUIET)


class Interrupted(BaseException):
    """Such as KeyboardInterrupt."""


def test_an_interrupted_run_continues_with_another_picture_score(predictor, pictures, tmp_path, monkeypatch):
    def predict_one(model, samples, stock=pipeline._predict, seen=[]):  # noqa: B006
        if seen:
            raise Interrupted
        seen.append(1)
        stock(model, samples)

    output, drawn = tmp_path / "out.json", tmp_path / "drawn"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(pipeline, "_predict", predict_one)
        predict(predictor, pictures, output, pictures=drawn, picture_score=0.9, **QUIET)
    done = predict(predictor, pictures, output, pictures=drawn, picture_score=0.0, **QUIET)
    assert (done["continued"], done["drawn"], done["images"]) == (1, 1, 3)
    predict(predictor, pictures, tmp_path / "whole.json", pictures=tmp_path / "w", picture_score=0.0, **QUIET)
    for path in (tmp_path / "w").rglob("*.*"):
        assert path.read_bytes() == (drawn / path.relative_to(tmp_path / "w")).read_bytes()


def test_a_full_disk_is_named(predictor, pictures, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(outputs.Path, "write_bytes", full)
    with pytest.raises(DiskFullError, match="the disk is full: .*drawn.*a.jpg could not be written"):
        predict(predictor, pictures, tmp_path / "out.json", pictures=tmp_path / "drawn", **QUIET)


def frames_of(path):
    capture, frames = cv2.VideoCapture(str(path)), []
    while (frame := capture.read())[0]:
        frames.append(frame[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_an_annotated_video(predictor, video, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    drawn, output = tmp_path / "drawn.mp4", tmp_path / "out.json"
    options = {"video": drawn, "picture_score": 0.0, "track": True, **QUIET}
    predict(predictor, video, output, **options)
    frames, fps = frames_of(drawn)
    assert len(frames) == 5 and fps == 8 and frames[0].shape[:2] == (480, 768)
    original = cv2.resize(frames_of(video)[0][2], (768, 480), interpolation=cv2.INTER_CUBIC)
    assert (np.abs(frames[2].astype(int) - original).max(axis=2) > 60).mean() > 0.02, "nothing is drawn"
    tracks = [record["track_id"] for record in coco(output)]
    assert min(tracks) == 1 and len(set(tracks)) < len(tracks), "nothing is followed"
    before = drawn.stat().st_mtime_ns
    assert predict(predictor, video, output, **options)["drawn"] == 0
    assert drawn.stat().st_mtime_ns == before
    monkeypatch.setattr(pipeline, "_predict", None)
    assert predict(predictor, video, output, **{**options, "fps": 4})["drawn"] == 5
    assert frames_of(drawn)[1] == 4
    assert not list(tmp_path.glob(".*")), "a draft is left"


def test_a_video_of_something_else_is_not_replaced(predictor, video, tmp_path, monkeypatch):
    content, output = open(video, "rb").read(), tmp_path / "out.json"
    monkeypatch.setattr(pipeline, "_predict", None)  # it is told before
    for overwrite in (False, True):
        with pytest.raises(UserError, match="would take the place of its source"):
            predict(predictor, video, output, video=video, overwrite=overwrite, **QUIET)
    other = tmp_path / "other.avi"
    other.write_bytes(b"of someone")
    with pytest.raises(UserError, match=r"other.avi exists and is not of this run: .*--overwrite"):
        predict(predictor, video, output, video=other, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.avi", "street.avi"]
    monkeypatch.undo()
    predict(predictor, video, output, **QUIET)
    with pytest.raises(UserError, match="other.avi exists and is not of this run"):
        predict(predictor, video, output, video=other, **QUIET)
    assert other.read_bytes() == b"of someone" and open(video, "rb").read() == content
    predict(predictor, video, output, video=other, overwrite=True, **QUIET)
    assert len(frames_of(other)[0]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"video": "a.gif"}, "a video's name must end with"),
        ({"video": "a.avi", "fps": -1}, "fps must be from 0 .* got -1"),
        ({"video": "a.avi", "fps": float("nan")}, "fps must be from 0 .* got nan"),
        ({"picture_score": 1.5}, "picture_score must be from 0 to 1, got 1.5"),
        ({"only": ""}, "only names no class"),
        ({"only": ("",)}, "only names no class"),
        ({"only": " , "}, "only names no class"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_predicted(
    predictor, video, tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr(pipeline, "_predict", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        predict(predictor, video, "out.json", **options, **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["street.avi"]


@pytest.mark.parametrize("scale", [-1, 17])
def test_a_scale_that_cannot_be(scale):
    with pytest.raises(ValueError, match=f"scale of pictures must be from 1 to 16, .* got {scale}"):
        Style(scale=scale)


def test_what_was_corrected_by_hand_is_not_replaced(predictor, pictures, tmp_path):
    output, label = tmp_path / "out.json", tmp_path / "labelme" / "more" / "b.json"
    options = {"labelme": tmp_path / "labelme", "masks": tmp_path / "masks", "picture_score": 0.0, **QUIET}
    predict(predictor, pictures, output, **options)
    content = label.read_text()
    corrected = json.loads(content)
    corrected["shapes"][0]["points"][0][0] += 3
    label.write_text(json.dumps(corrected))
    # Other kinds of files are none of its business.
    assert predict(predictor, pictures, output, pictures=tmp_path / "drawn", **options)["drawn"] == 3
    assert json.loads(label.read_text()) == corrected
    with pytest.raises(UserError, match=r"b.json would be replaced, and is not as this program wrote it"):
        predict(predictor, pictures, output, **{**options, "picture_score": 0.1})
    assert json.loads(label.read_text()) == corrected
    label.write_text(content)
    (mask, *_) = (tmp_path / "masks").glob("*/more/b_*.png")
    cv2.imwrite(str(mask), 255 - cv2.imread(str(mask), -1))
    with pytest.raises(UserError, match=r"b_\d+.png would be replaced"):
        predict(predictor, pictures, output, **{**options, "picture_score": 0.2})
    assert (label.read_text() == content) and mask.exists()
    predict(predictor, pictures, output, **{**options, "picture_score": 0.2}, overwrite=True)
    assert predict(predictor, pictures, output, **{**options, "picture_score": 0.3})["drawn"] == 3


def test_files_of_someone_else_are_not_replaced(predictor, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures)
    (pictures / "a.json").write_text('{"shapes": []}')
    options = {"labelme": ".", **QUIET}  # a single image has no folder that would be refused
    with pytest.raises(UserError, match="a.json would be replaced"):
        predict(predictor, "a.png", tmp_path / "out.json", **options)
    assert (pictures / "a.json").read_text() == '{"shapes": []}'


def test_a_camera_is_recorded_until_it_is_interrupted(predictor, video, tmp_path, monkeypatch):
    pytest.importorskip("scipy")
    frames = frames_of(video)[0]

    class Camera:
        def __init__(self, number):
            self.place = 0

        def isOpened(self):
            return True

        def get(self, what):
            return 0.0

        def read(self):
            self.place += 1
            return True, frames[self.place % 5]

    seen = []

    def interrupted(model, samples, stock=pipeline._predict):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(1)
        stock(model, samples)

    fake = SimpleNamespace(VideoCapture=Camera, CAP_PROP_FPS=cv2.CAP_PROP_FPS)
    with monkeypatch.context() as patch:
        patch.setattr("mrcnn_ext.inference.videos.cv2", fake)
        patch.setattr(pipeline, "_predict", interrupted)
        done = predict(
            predictor, 0, tmp_path / "cam.json", video=tmp_path / "cam.avi", pictures=tmp_path / "d", **QUIET
        )
    assert done["images"] == 4
    assert len(frames_of(tmp_path / "cam.avi")[0]) == 4
    assert sorted(p.name for p in (tmp_path / "d").iterdir())[0] == "webcam_0_000000.jpg"


def test_tracks_keep_objects_apart():
    pytest.importorskip("scipy")
    tracker = Tracker(min_score=0.5)

    def frame(*objects):
        records = [{"category_id": c, "bbox": [x, 10, 20, 20], "score": s} for c, x, s in objects]
        tracker.update(records, (100, 200))
        return [record["track_id"] for record in records]

    assert frame((1, 10, 0.9), (2, 12, 0.9), (1, 100, 0.9)) == [1, 3, 2], "classes are apart"
    assert frame((1, 105, 0.9), (1, 14, 0.9), (2, 16, 0.9), (1, 50, 0.1)) == [2, 1, 3, None]
    assert frame((2, 20, 0.9), (1, 170, 0.9)) == [3, 4], "what does not overlap is new"
    assert frame((1, 16, 0.9), (1, 172, 0.9)) == [1, 4], "an object that was hidden is found again"
    assert frame() == []


def test_videos_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="a video's name must end with .mp4, .avi, .mkv, .webm"):
        VideoFile(tmp_path / "a.gif", 5)
    with pytest.raises(UserError, match="a video of no frames is not written"):
        VideoFile(tmp_path / "a.mp4", 5).close()
    video = VideoFile(tmp_path / "a.avi", 5)
    for size in ((31, 45), (31, 45), (60, 20)):  # odd sides, and a frame of another size
        video.write(np.full((*size, 3), 200, np.uint8))
    video._count += 1  # as if OpenCV had lost one
    with pytest.raises(OSError, match="4 frames were written, and OpenCV reads 3 of them"):
        video.close()
    assert not list(tmp_path.iterdir())


def test_the_command(cfg, weights, pictures, tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    cfg.DATASETS.TEST = ()
    config.write_text(cfg.dump())
    monkeypatch.chdir(tmp_path)
    options = ["--config-file", str(config), "--weights", weights, "--no-accelerate"]

    def call(*arguments):
        return CliRunner().invoke(cli.command, [*map(str, arguments), *options], catch_exceptions=True)

    found = call("images/a.png", "images/more", "--pictures", "drawn", "TEST.DETECTIONS_PER_IMAGE", 2)
    assert found.exit_code == 0, found.output
    assert "drawn.json: 4 results of 2 images\ndrawn: drawn\n" in found.output
    (pictures / "a.jpg").write_bytes(b"no image")
    found = call("images", "--output", "a.json")
    assert isinstance(found.exception, UserError)
    assert "a.jpg: the image cannot be read" in str(found.exception)
    assert "--skip-unreadable (skip_unreadable=True)" in str(found.exception)
    found = call("images", "--output", "a.json", "--skip-unreadable")
    assert "\nskipped, cannot be read: a.jpg" in found.output
    for arguments, message in (
        (("images",), "nothing to write: give --output, --pictures, --video"),
        (("INPUT.MIN_SIZE_TEST", 9), "no source before INPUT.MIN_SIZE_TEST"),
    ):
        assert message in str(call(*arguments).exception)


def test_what_belongs_to_the_config_and_what_to_the_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli._split(("a", "b.jpg")) == (["a", "b.jpg"], [])
    assert cli._split(("a", "MODEL.MASK_ON", "True")) == (["a"], ["MODEL.MASK_ON", "True"])
    assert cli._split(("data=a.yaml", "SEED", "1")) == (["data=a.yaml"], ["SEED", "1"])
    assert cli._split(("a", "train.device=cpu")) == (["a"], ["train.device=cpu"])
    assert cli._split(("IMG.JPG", "http://x/y?a=b")) == (["IMG.JPG", "http://x/y?a=b"], [])
    (tmp_path / "INPUT.PNG").write_bytes(b"")
    assert cli._split(("INPUT.PNG",)) == (["INPUT.PNG"], [])


def test_pictures_and_cutouts_of_someone_else_are_not_replaced(predictor, pictures, tmp_path):
    folders = {"pictures": tmp_path / "drawn", "cutouts": tmp_path / "cut"}
    output, options = tmp_path / "out.json", {"picture_score": 0.0, **QUIET}
    for folder in folders.values():
        folder.mkdir()
    theirs = [folders["pictures"] / "a.png", folders["cutouts"] / "a_png_001_car.png"]
    for kind, path in zip(folders, theirs, strict=True):
        cv2.imwrite(str(path), np.zeros((9, 9, 3), np.uint8))
        before = path.read_bytes()
        with pytest.raises(UserError, match=f"{path.name} would be replaced, .* --overwrite"):
            predict(predictor, pictures, output, **{kind: folders[kind]}, **options)
        assert path.read_bytes() == before
    predict(predictor, pictures, output, **folders, **options, overwrite=True)
    # One's own are drawn anew, and by another run too, unless somebody has changed them.
    options["picture_score"] = 0.1
    assert predict(predictor, pictures, output, **folders, **options)["drawn"] == 3
    predict(predictor, pictures, tmp_path / "other.json", **folders, **options)
    cv2.imwrite(str(theirs[0]), 255 - cv2.imread(str(theirs[0])))
    options["picture_score"] = 0.2
    with pytest.raises(UserError, match="a.png would be replaced"):
        predict(predictor, pictures, output, **folders, **options)
