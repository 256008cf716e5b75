"""predict and predictions: the answers of one image at a time, whatever happens in between."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("detectron2")
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import inference_on_dataset
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mrcnn_ext import accelerate
from mrcnn_ext.engine import UserError
from mrcnn_ext.evaluation import COCOEvaluator
from mrcnn_ext.inference import load_predictor, pipeline, predict, predictions, run, worker
from mrcnn_ext.inference.drawing import Painter, Style
from mrcnn_ext.modeling import LazyMasks

pytestmark = pytest.mark.detectron2


@pytest.fixture
def folder(tmp_path, scenes):
    """Pictures of three sizes, two of which are padded to the same, in a folder and one within it."""
    root = tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for i, record in enumerate(DatasetCatalog.get(scenes)):
        picture = cv2.imread(record["file_name"])
        height = picture.shape[0] - (0, 4, 60)[i % 3]
        cv2.imwrite(str(root / ("more" if i % 2 else "") / f"{i}.png"), picture[:height])
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture
def predictor(cfg):
    return load_predictor(cfg)


def one_at_a_time(cfg, model=None):
    """detectron2's DefaultPredictor, of another model if one is given."""
    default = DefaultPredictor(cfg)
    default.model = model or default.model
    return lambda file: default(read_image(file, "BGR"))["instances"]


def assert_equal(found, expected):
    assert len(expected) > 0 and found.image_size == expected.image_size
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
    assert (np.asarray(found.pred_masks) != np.asarray(expected.pred_masks)).mean() < 1e-3
    torch.testing.assert_close(found.pred_keypoints, expected.pred_keypoints, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("input_format", ["BGR", "RGB"])
def test_stock_predictions_in_batches_are_those_of_default_predictor(make_cfg, folder, input_format):
    cfg = make_cfg("INPUT.FORMAT", input_format)
    alone = one_at_a_time(cfg)
    found = list(predictions(cfg, folder, accelerate=False, batch_size=3, workers=2))
    names = [os.path.relpath(record["file_name"], folder) for record, _ in found]
    assert sorted(names) == ["0.png", "2.png", "4.png", "6.png", "more/1.png", "more/3.png", "more/5.png"]
    for record, instances in found:
        assert record["image_id"] == 1 + sorted(names).index(os.path.relpath(record["file_name"], folder))
        assert (record["height"], record["width"]) == instances.image_size
        assert_equal(instances, alone(record["file_name"]))


def test_only_images_that_are_padded_alike_share_a_batch(predictor, folder):
    sizes = []
    predictor.model.register_forward_pre_hook(
        lambda model, args: sizes.append({tuple(item["image"].shape[1:]) for item in args[0]})
    )
    assert len(list(predictions(predictor, folder, accelerate=False, batch_size=4))) == 7
    assert max(map(len, sizes)) > 1, "50 and 64 rows, say, are both padded to 64"
    for group in sizes:
        assert len({tuple(-(-side // 32) for side in size) for size in group}) == 1


def test_accelerated_predictions_are_those_of_the_accelerated_model(cfg, predictor, folder):
    alone = one_at_a_time(cfg, accelerate(predictor.model, training=False))
    for record, instances in predictions(predictor, folder, batch_size=1):
        assert isinstance(instances.pred_masks, LazyMasks)
        assert_equal(instances, alone(record["file_name"]))


def test_a_model_of_ones_own_with_a_mapper(cfg, predictor, folder):
    with pytest.raises(ValueError, match="a model needs mapper="):
        next(predictions(predictor.model, folder))
    with pytest.raises(ValueError, match="workers must be at least 1, or 0 for the default, got -1"):
        next(predictions(predictor, folder, workers=-1))
    with pytest.raises(TypeError, match="must be a config, a LoadedModel or a torch.nn.Module, got int"):
        next(predictions(3, folder))
    mapper = DatasetMapper(
        False, augmentations=predictor.mapper.augmentations.augs, image_format=cfg.INPUT.FORMAT
    )
    predictor.model.train()
    files = sorted(folder.glob("*.png"))
    found = list(predictions(predictor.model, files, mapper=mapper, min_score=0.3, accelerate=False))
    assert [record["image_id"] for record, _ in found] == [1, 2, 3, 4]
    assert predictor.model.training
    alone = one_at_a_time(cfg)
    for record, instances in found:
        expected = alone(str(record["file_name"]))
        assert torch.equal(instances.scores, expected.scores[expected.scores >= 0.3])


class OfAnotherKind(torch.nn.Module):
    """No GeneralizedRCNN, and says nothing about how it pads."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, inputs):
        return self.inner(inputs)


def test_a_model_that_accelerate_does_not_take_runs_as_it_is(cfg, predictor, folder, caplog):
    model = OfAnotherKind(predictor.model)
    found = list(predictions(model, folder, mapper=predictor.mapper, batch_size=2))
    assert "OfAnotherKind is not accelerated: mrcnn_ext.accelerate takes GeneralizedRCNN" in caplog.text
    alone = one_at_a_time(cfg)
    for record, instances in found:
        assert_equal(instances, alone(record["file_name"]))


def evaluate(dataset, results):
    truth = COCO(MetadataCatalog.get(dataset).json_file)
    scores = {}
    for task in ("bbox", "segm"):
        evaluation = COCOeval(truth, truth.loadRes(str(results)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        scores[task] = [100 * score if score >= 0 else float("nan") for score in evaluation.stats[:6]]
    return scores


@pytest.mark.parametrize("fast", [False, True])
def test_results_of_a_dataset_are_those_of_its_evaluation(
    cfg, predictor, scenes, tmp_path, fast, monkeypatch
):
    evaluator = COCOEvaluator(scenes, ("bbox", "segm"), output_dir=str(tmp_path / "evaluator"))
    model = accelerate(predictor.model, training=False, masks="lazy") if fast else predictor.model
    from detectron2.data import build_detection_test_loader

    loader = build_detection_test_loader(DatasetCatalog.get(scenes), mapper=predictor.mapper)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = inference_on_dataset(model, loader, evaluator)
        output = tmp_path / "results.json"
        if fast:
            monkeypatch.setattr(LazyMasks, "tensor", None)  # nothing may paste
        summary = predict(predictor, scenes, output, accelerate=fast, progress=False)
        found = evaluate(scenes, output)
    records = json.loads((tmp_path / "evaluator" / "coco_instances_results.json").read_text())
    assert json.loads(output.read_text()) == records
    assert summary == {"images": 7, "results": len(records), "skipped": [], "continued": 0, "drawn": 0}
    for task, scores in found.items():
        assert scores == pytest.approx(list(expected[task].values())[:6], nan_ok=True)
    images = json.loads((tmp_path / "results.images.json").read_text())
    truth = json.loads(Path(MetadataCatalog.get(scenes).json_file).read_text())
    names = ("id", "file_name", "height", "width")
    assert images["images"] == [{name: image[name] for name in names} for image in truth["images"]]
    assert images["categories"] == [{name: c[name] for name in ("id", "name")} for c in truth["categories"]]


class Interrupted(BaseException):
    """Such as KeyboardInterrupt."""


def test_an_interrupted_run_continues(predictor, folder, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.json", tmp_path / "results.json"
    predict(predictor, folder, whole, progress=False)
    seen = []

    def predict_three(model, samples, stock=pipeline._predict):
        if len(seen) in (3, 5):
            seen.append("interrupted")
            raise Interrupted
        seen.extend(sample.record["image_id"] for sample in samples)
        stock(model, samples)

    monkeypatch.setattr(pipeline, "_predict", predict_three)
    for _ in range(2):
        with pytest.raises(Interrupted):
            predict(predictor, folder, output, progress=False)
        assert not output.exists()
    summary = predict(predictor, folder, output, progress=False)
    assert summary["images"] == 7 and summary["continued"] == 4  # three, and one after the second start
    assert output.read_bytes() == whole.read_bytes()
    assert predict(predictor, folder, output, progress=False) == {**summary, "continued": 7}


SLOW = """
import sys, time
from mrcnn_ext.engine import load_config
from mrcnn_ext.inference import load_predictor, predict
cfg = load_config(sys.argv[1])
predictor = load_predictor(cfg)
predictor.model.register_forward_hook(lambda *args: time.sleep(float(sys.argv[4])))
print(predict(predictor, sys.argv[2], sys.argv[3], accelerate=False))
"""


def test_a_killed_process_loses_nothing(make_cfg, folder, tmp_path):
    cfg = make_cfg("DATASETS.TEST", "()")  # the other process does not know the dataset
    predictor = load_predictor(cfg)
    config, output = tmp_path / "config.yaml", tmp_path / "results.json"
    config.write_text(cfg.dump())
    part = Path(f"{output}.part")
    command = [sys.executable, "-c", SLOW, str(config), str(folder), str(output), "0.5"]
    with open(tmp_path / "log.txt", "w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        deadline = time.monotonic() + 120
        while not part.exists() or part.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists()
    done = part.read_bytes().count(b"\n") - 1
    summary = predict(predictor, folder, output, accelerate=False, progress=False)
    assert summary["continued"] == done and 3 <= done < 7 and summary["images"] == 7
    whole = tmp_path / "whole.json"
    predict(predictor, folder, whole, accelerate=False, progress=False)
    assert json.loads(output.read_text()) == json.loads(whole.read_text())


def test_continuing_with_something_else_is_refused(make_cfg, folder, tmp_path):
    output = tmp_path / "results.json"
    predictor = load_predictor(make_cfg())
    predict(predictor, folder, output, progress=False)
    for options, names in (
        (("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2), "model"),
        (("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [40], [64], [100], [150]]), "weights"),
        (("INPUT.MIN_SIZE_TEST", 96), "preprocessing"),
    ):
        with pytest.raises(UserError, match=f"is of a run with other {names}: give"):
            predict(make_cfg(*options), folder, output, progress=False)
    with pytest.raises(
        UserError, match=r"other min_score \(0.0, now 0.1\) and accelerate \(True, now False\):"
    ):
        predict(predictor, folder, output, min_score=0.1, accelerate=False, progress=False)
    next(iter(predictor.model.parameters())).data += 0.1
    with pytest.raises(UserError, match="other weights: give"):
        predict(predictor, folder, output, progress=False)
    (folder / "7.png").write_bytes((folder / "0.png").read_bytes())
    with pytest.raises(UserError, match="other source: give"):
        predict(make_cfg(), folder, output, progress=False)
    content = output.read_bytes()
    for wrong in ({"batch_size": -1}, {"workers": -2}):
        with pytest.raises(ValueError, match="must be at least 1, or 0 for the default, got -"):
            predict(make_cfg(), folder, output, overwrite=True, **wrong)
    assert output.read_bytes() == content
    assert predict(make_cfg(), folder, output, overwrite=True, progress=False)["images"] == 8
    with pytest.raises(UserError, match=r"is of a run with other top_k \(None, now 2\): give"):
        predict(make_cfg(), folder, output, top_k=2, progress=False)


@pytest.mark.parametrize("complete", [True, False])
def test_other_images_of_the_same_names_are_refused(predictor, folder, tmp_path, complete):
    output = tmp_path / "results.json"
    predict(predictor, folder, output, progress=False)
    if not complete:
        lines = json.loads((tmp_path / "results.images.json").read_text())
        part = [{"run": lines["run"]}]
        for index, image in enumerate(lines["images"]):
            stamp = lines["stamps"][str(index)]
            part.append({"index": index, "image": image, "stamp": stamp, "results": []})
        Path(f"{output}.part").write_text("".join(json.dumps(line) + "\n" for line in part))
    assert predict(predictor, folder, output, progress=False)["continued"] == 7
    cv2.imwrite(str(folder / "more" / "3.png"), np.zeros((64, 80, 3), np.uint8))
    with pytest.raises(UserError, match=r"more/3\.png is not the image that .*results\.json has results of"):
        predict(predictor, folder, output, progress=False)
    (folder / "more" / "3.png").unlink()
    with pytest.raises(UserError, match="of a run with other source"):
        predict(predictor, folder, output, progress=False)


def test_an_image_that_was_repaired_is_tried_again(predictor, folder, tmp_path, monkeypatch):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "results.json"

    def stop(*args):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(run.ResultsFile, "finish", stop)
        predict(predictor, folder, output, skip_unreadable=True, progress=False)
    (folder / "2.png").write_bytes(whole)
    summary = predict(predictor, folder, output, skip_unreadable=True, progress=False)
    assert (summary["images"], summary["continued"], summary["skipped"]) == (7, 6, [])


def test_images_that_cannot_be_read(predictor, folder, tmp_path):
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    (folder / "4.png").write_text("no image")
    output = tmp_path / "results.json"
    with pytest.raises(UserError, match=r"2\.png: the image cannot be read: .*truncated"):
        predict(predictor, folder, output, progress=False)
    with pytest.raises(UserError, match=r"2\.png: the image cannot be read"):
        list(predictions(predictor, folder))
    summary = predict(predictor, folder, output, skip_unreadable=True, progress=False)
    assert summary["images"] == 5
    assert [image["file_name"] for image in summary["skipped"]] == ["2.png", "4.png"]
    assert len(list(predictions(predictor, folder, skip_unreadable=True))) == 5
    assert json.loads((tmp_path / "results.images.json").read_text())["skipped"] == summary["skipped"]


def test_a_failing_model_or_writer_names_the_file(predictor, folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("of a kind")

    with monkeypatch.context() as patch:
        patch.setattr(Painter, "draw", fail)
        with pytest.raises(RuntimeError, match=r"0\.png: ZeroDivisionError: of a kind"):
            predict(predictor, folder, tmp_path / "a.json", pictures=tmp_path, progress=False)
    predictor.model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"0\.png, .*4\.png: ZeroDivisionError: of a kind"):
        list(predictions(predictor, folder, accelerate=False, batch_size=3))


def test_pictures(predictor, folder, tmp_path):
    options = {"pictures": tmp_path / "drawn", "picture_score": 0.0, "style": Style(scale=1)}
    predict(predictor, folder, tmp_path / "a.json", **options, progress=False)
    drawn = cv2.imread(str(tmp_path / "drawn" / "more" / "1.png"))
    original = cv2.imread(str(folder / "more" / "1.png"))
    assert drawn.shape == original.shape
    difference = np.abs(drawn.astype(int) - original)
    assert (difference.max(axis=2) > 60).mean() > 0.02, "nothing is drawn"
    assert np.median(difference) < 20, "not the picture"
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 7


def test_pictures_never_take_the_place_of_images(predictor, folder, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    options = {"progress": False, "overwrite": True}
    with pytest.raises(UserError, match="drawn: the pictures would be among the images of .*pictures: give"):
        predict(predictor, folder, tmp_path / "a.json", pictures=folder / "drawn", **options)
    files = sorted(before)[:2]
    predict(predictor, files, tmp_path / "a.json", pictures=folder.parent / "drawn", **options)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["1_0.png", "2_2.png"]
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="0.png: the picture would take the place of the image"):
        predict(predictor, ["0.png"], tmp_path / "a.json", pictures=".", **options)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


@pytest.fixture
def video(scenes, tmp_path):
    path = str(tmp_path / "street.avi")
    frames = [cv2.imread(record["file_name"]) for record in DatasetCatalog.get(scenes)]
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, frames[0].shape[1::-1])
    for frame in frames:
        writer.write(frame)
    writer.release()
    return path


def test_video(cfg, predictor, video):
    alone, capture = DefaultPredictor(cfg), cv2.VideoCapture(video)
    found = list(predictions(predictor, video, accelerate=False, batch_size=3))
    assert [(record["frame"], record["image_id"]) for record, _ in found] == [(i, i + 1) for i in range(7)]
    for _, instances in found:
        assert_equal(instances, alone(capture.read()[1])["instances"])


def test_an_interrupted_video_continues(predictor, video, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.json", tmp_path / "results.json"
    summary = predict(predictor, video, whole, pictures=tmp_path / "drawn", progress=False)
    assert summary["images"] == 7
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir())[-1] == "street_000006.jpg"
    with monkeypatch.context() as patch:

        def predict_some(model, samples, stock=pipeline._predict):
            if samples[0].index == 4:
                raise Interrupted
            stock(model, samples)

        patch.setattr(pipeline, "_predict", predict_some)
        with pytest.raises(Interrupted):
            predict(predictor, video, output, progress=False)
    assert predict(predictor, video, output, progress=False)["continued"] == 4
    assert output.read_bytes() == whole.read_bytes()
    images = json.loads((tmp_path / "results.images.json").read_text())["images"]
    assert images[6] == {"id": 7, "file_name": "street.avi", "height": 160, "width": 256, "frame": 6}


def test_a_video_that_is_cut_short_is_told(predictor, video, tmp_path, caplog):
    content = Path(video).read_bytes()
    Path(video).write_bytes(content[: content.rfind(b"00dc", 0, content.rfind(b"idx1")) - 10000])
    summary = predict(predictor, video, tmp_path / "results.json", progress=False)
    assert 0 < summary["images"] < 7
    (message,) = (record.getMessage() for record in caplog.records if "street.avi" in record.getMessage())
    assert f"announces 7 frames, of which OpenCV reads {summary['images']}: is it cut short?" in message


def test_a_frame_that_cannot_be_decoded_is_named(predictor, video, monkeypatch):
    class Damaged:  # no subclass: OpenCV's deallocation corrupts the memory of those
        def __init__(self, path, stock=cv2.VideoCapture):
            self.stock = stock(path)

        def __getattr__(self, name):
            return getattr(self.stock, name)

        def retrieve(self):
            return (False, None) if self.get(cv2.CAP_PROP_POS_FRAMES) == 3 else self.stock.retrieve()

    monkeypatch.setattr(cv2, "VideoCapture", Damaged)
    with pytest.raises(
        UserError, match="street.avi, frame 2: the image cannot be read: OpenCV cannot decode"
    ):
        list(predictions(predictor, video, accelerate=False))
    found = predictions(predictor, video, accelerate=False, skip_unreadable=True)
    assert [record["frame"] for record, _ in found] == [0, 1, 3, 4, 5, 6]


def test_what_is_no_source_is_named(tmp_path, scenes):
    (tmp_path / "a.mp4").write_bytes(b"\0\xff no video")
    (tmp_path / "empty").mkdir()
    for source, message in (
        (tmp_path / "a.mp4", "a.mp4: OpenCV cannot read it as a video"),
        (tmp_path / "empty", "empty: no images in this folder; looked for .bmp"),
        ([], "the source is empty"),
        (f"{scenes}s", f"is no file, folder or registered dataset; did you mean {scenes}"),
    ):
        with pytest.raises(UserError, match=message):
            next(predictions(torch.nn.Identity(), source, mapper="unused"))


def test_weights_that_cannot_predict(make_cfg, weights, tmp_path):
    with pytest.raises(UserError, match="no weights to predict with: give a checkpoint .*MODEL.WEIGHTS"):
        load_predictor(make_cfg("MODEL.WEIGHTS", ""))
    state = torch.load(weights)["model"]
    torch.save({k: v for k, v in state.items() if k.startswith("backbone")}, tmp_path / "backbone.pth")
    with pytest.raises(
        UserError, match=r"backbone.pth lacks \d+ of the model's \d+ parameters \(proposal_gen"
    ):
        load_predictor(make_cfg(), str(tmp_path / "backbone.pth"))


def test_metadata_with_too_few_classes_is_an_error(predictor, folder, tmp_path):
    metadata = MetadataCatalog.get("inference_of_one").set(thing_classes=["a"])
    with pytest.raises(UserError, match="predicts 8 classes, and inference_of_one names 1 .*--classes"):
        predict(predictor, folder, tmp_path / "a.json", metadata=metadata, progress=False)
    with pytest.raises(UserError, match="predicts 8 classes, and inference_of_one names 9"):
        metadata = Metadata(name="inference_of_one", thing_classes=list("abcdefghi"))
        predict(predictor, folder, tmp_path / "a.json", metadata=metadata, progress=False)
    assert not list(tmp_path.glob("a.json*"))
    MetadataCatalog.remove("inference_of_one")


def test_a_limit_that_is_lifted_is_not_taken_for_all(predictor, folder, tmp_path):
    options = {"progress": False, "accelerate": False}
    assert predict(predictor, folder, tmp_path / "a.json", limit=2, **options)["images"] == 2
    with pytest.raises(UserError, match=r"is of a run with other limit \(2, now None\): give"):
        predict(predictor, folder, tmp_path / "a.json", **options)
    predict(predictor, folder, tmp_path / "a.json", overwrite=True, **options)
    with pytest.raises(UserError, match=r"other limit \(None, now 2\)"):
        predict(predictor, folder, tmp_path / "a.json", limit=2, **options)


def test_int8_is_what_the_config_says(make_cfg, folder, scenes, tmp_path, monkeypatch):
    given = []

    def accelerate_model(model, int8=None, stock=worker.accelerate_model, **options):
        given.append(int8)
        return stock(model, **options)

    monkeypatch.setattr(worker, "accelerate_model", accelerate_model)
    file = tmp_path / "int8.json"
    file.write_text("{}")
    for value in ("", str(file), scenes):
        predictor = load_predictor(make_cfg("MODEL.ACCELERATE_INT8", value))
        predict(predictor, folder, tmp_path / f"{len(given)}.json", limit=1, progress=False)
    assert given[:2] == [None, str(file)]
    assert [set(batch[0]) >= {"image", "file_name"} for batch in given[2]] == [True] * 7
    predictor = load_predictor(make_cfg("MODEL.ACCELERATE_INT8", str(file)))
    file.write_text("{ }")
    with pytest.raises(UserError, match="is of a run with other int8: give"):
        predict(predictor, folder, tmp_path / "1.json", limit=1, progress=False)
    predictor = load_predictor(make_cfg("MODEL.ACCELERATE_INT8", "nothing"))
    with pytest.raises(
        UserError, match="ACCELERATE_INT8.*'nothing' is neither the file of a calibration nor"
    ):
        predict(predictor, folder, tmp_path / "b.json", progress=False)
    assert not (tmp_path / "b.json.part").exists()
    monkeypatch.undo()
    predictor = load_predictor(make_cfg("MODEL.ACCELERATE_INT8", str(file)))
    with pytest.raises(ValueError, match="int8.json"):  # of nothing
        predict(predictor, folder, tmp_path / "b.json", progress=False)
    assert not (tmp_path / "b.json.part").exists()


@pytest.fixture
def other_classes(scenes):
    """The dataset with the classes in another order and with other ids, under another name."""
    name, metadata = "inference_other", MetadataCatalog.get(scenes)
    DatasetCatalog.register(name, lambda: DatasetCatalog.get(scenes))
    ids = {7 * id: label for id, label in metadata.thing_dataset_id_to_contiguous_id.items()}
    MetadataCatalog.get(name).set(
        thing_classes=metadata.thing_classes[::-1], thing_dataset_id_to_contiguous_id=ids
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_classes_of_the_source_that_are_not_the_models(predictor, scenes, other_classes, tmp_path):
    output = tmp_path / "a.json"
    with pytest.raises(
        UserError, match=f"of {other_classes}, are not the model's, .* of {scenes}: say whose"
    ):
        predict(predictor, other_classes, output, progress=False)
    predict(predictor, other_classes, output, metadata=scenes, progress=False)
    with pytest.raises(UserError, match="of a run with other categories: give"):
        predict(predictor, other_classes, output, metadata=other_classes, progress=False)
    with pytest.raises(UserError, match=f"no dataset '{scenes}s' is registered; did you mean {scenes}"):
        predict(predictor, other_classes, output, metadata=f"{scenes}s", progress=False)


def test_a_source_without_classes_takes_the_models(predictor, scenes, tmp_path):
    DatasetCatalog.register("inference_bare", lambda: DatasetCatalog.get(scenes))
    try:
        predict(predictor, "inference_bare", tmp_path / "a.json", progress=False)
    finally:
        DatasetCatalog.remove("inference_bare")
        MetadataCatalog.remove("inference_bare")
    categories = json.loads((tmp_path / "a.images.json").read_text())["categories"]
    assert [c["name"] for c in categories] == MetadataCatalog.get(scenes).thing_classes


def test_test_data_that_is_not_registered_is_told(make_cfg, caplog):
    load_predictor(make_cfg("DATASETS.TEST", "('nowhere_val',)"))
    assert "the test dataset nowhere_val is not registered" in caplog.text


def test_options_and_devices_that_cannot_be(cfg):
    with pytest.raises(ValueError, match="opts go over a config file: merge A 1 into the config before"):
        load_predictor(cfg, opts=["A", "1"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device 'cuda': PyTorch finds no GPU here"):
            load_predictor(cfg, device="cuda")


def test_records_are_checked(predictor, scenes, tmp_path):
    record = DatasetCatalog.get(scenes)[0]
    for records, message in (
        ([{"image_id": 4}], "record 0 of the source has no file_name: {'image_id': 4}"),
        ([{**record, "image_id": 4}, {**record, "image_id": 4}], "two records of the source have image_id 4"),
        ([{"file_name": "a.png"}, {"file_name": "b.png", "image_id": 1}], "image_id 1: a.png and b.png"),
    ):
        with pytest.raises(UserError, match=message):
            predict(predictor, records, tmp_path / "a.json", progress=False)
