"""The runtime of one file: the model's answers from images as they are, without PyTorch; and OpenVINO's files."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog, transforms
from detectron2.data import detection_utils as utils
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import build_model

from mrcnn_ext import add_mrcnn_ext_config
from mrcnn_ext.engine import UserError
from mrcnn_ext.export import ExportedModel, WrongAnswersError, export_model, standalone
from mrcnn_ext.export.files import _missing
from mrcnn_ext.inference import load_predictor, predictions
from mrcnn_ext.layers import heatmaps_to_keypoints

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LEVELS = "['res2', 'res3', 'res4', 'res5']"
SMALL = (
    *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"),
    *("MODEL.PIXEL_STD", "[57.375, 57.120, 58.395]", "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"),
    *("MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.RESNETS.OUT_FEATURES", LEVELS, "MODEL.FPN.IN_FEATURES", LEVELS),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ANCHOR_GENERATOR.SIZES", "[[8], [16], [32], [64], [128]]"),
    *("MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']", "MODEL.RPN.PRE_NMS_TOPK_TEST", "40"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "30", "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.NUM_CLASSES", "3"),
    # No more than are found: what a runtime loses at the end of a list is missed.
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.25", "TEST.DETECTIONS_PER_IMAGE", "100"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7"),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5"),
    *("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "150"),
)
NAMES = ["nose", "left_eye", "right_eye", "left_ear", "right_ear"]
SIZES = ((90, 131), (300, 220))  # enlarged, and made smaller


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    cfg = get_cfg()
    add_mrcnn_ext_config(cfg)
    cfg.merge_from_list(list(SMALL))
    model = build_model(cfg).eval()
    for key, value in model.state_dict().items():
        if key.endswith("running_mean"):
            value.normal_(std=0.1)
        elif key.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        elif key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
            value.mul_(8)
    return model


@pytest.fixture(scope="module")
def mapper():
    return DatasetMapper(False, augmentations=[transforms.ResizeShortestEdge(96, 150)], image_format="BGR")


@pytest.fixture(scope="module")
def metadata():
    name = "standalone_names"
    rules = [("nose", "left_eye", (0, 0, 0)), ("nose", "right_eye", (0, 0, 0))]
    yield MetadataCatalog.get(name).set(
        thing_classes=["a", "b", "c"],
        thing_dataset_id_to_contiguous_id={7: 0, 3: 1, 9: 2},
        keypoint_names=NAMES,
        keypoint_connection_rules=rules,
    )
    MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def onnx_file(model, mapper, metadata, tmp_path_factory):
    path = tmp_path_factory.mktemp("standalone") / "model.onnx"
    export_model(model, path, mapper=mapper, metadata=metadata)
    return path


def picture(size, seed=0):
    """Smooth, so that what is found does not hang on single pixels."""
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.BICUBIC))  # RGB


@torch.no_grad()
def stock(model, mapper, image):
    """detectron2's own path, from an RGB picture."""
    augmented = transforms.AugInput(np.ascontiguousarray(image[:, :, ::-1]))
    mapper.augmentations(augmented)
    tensor = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
    return model([{"image": tensor, "height": image.shape[0], "width": image.shape[1]}])[0]["instances"]


def assert_same(found, expected):
    assert len(expected) > 0 and len(found["scores"]) == len(expected)
    np.testing.assert_allclose(found["boxes"], expected.pred_boxes.tensor, atol=0.02)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-4)
    assert (found["classes"] == expected.pred_classes.numpy()).all()
    assert found["masks"].shape == tuple(expected.pred_masks.shape) and found["masks"].dtype == bool
    assert (found["masks"] != expected.pred_masks.numpy()).mean() < 2e-4
    off = np.abs(found["keypoints"] - expected.pred_keypoints.numpy())
    assert (off[..., :2].max(axis=2) < 0.05).mean() > 0.95  # two peaks may be all but tied
    assert off[..., 2].max() < 1e-3


def test_the_models_answers_from_images_as_they_are(onnx_file, model, mapper):
    detector = standalone.Detector(onnx_file)
    assert detector.names == ["a", "b", "c"] and detector.keypoint_names == NAMES
    assert detector.metadata["test_size"] == {"min": 96, "max": 150}
    assert detector.metadata["classes"][1] == {"id": 3, "name": "b"}
    assert detector.metadata["skeleton"] == [[0, 1], [0, 2]]
    for size in SIZES:
        image = picture(size)
        expected = stock(model, mapper, image)
        found = detector(image)
        assert_same(found, expected)
        assert found["names"] == [detector.names[k] for k in expected.pred_classes.tolist()]
    again = detector(np.ascontiguousarray(image[:, :, ::-1]), order="BGR")
    assert (again["boxes"] == found["boxes"]).all()
    middle = float(np.median(found["scores"]))
    some = detector(image, min_score=middle, masks=False)
    assert len(some["boxes"]) == (found["scores"] >= middle).sum() and "masks" not in some
    for wrong, message in (
        (image.astype(np.float32), "image must be uint8, 0 to 255, got float32"),
        (image[:, :, :2], r"image must have shape \(H, W, 3\), got"),
        (picture((8, 80))[:1, :, :].repeat(60, axis=1), "nothing of the image's 1 x 4800 pixels is left"),
    ):
        with pytest.raises(ValueError, match=message):
            detector(wrong)
    with pytest.raises(ValueError, match="order must be RGB or BGR, got 'GRB'"):
        detector(image, order="GRB")


PROGRAM = """
import sys
for name in ("torch", "torchvision", "detectron2", "cv2", "PIL", "mrcnn_ext", "pycocotools"):
    sys.modules[name] = None  # an import of it fails
import numpy as np
from mrcnn_runtime import Detector
found = Detector("model.onnx")(np.load("image.npy"))
np.savez("found.npz", **{k: v for k, v in found.items() if k != "names"})
"""


def test_it_needs_numpy_and_onnxruntime_alone(onnx_file, model, mapper, tmp_path):
    shutil.copy(onnx_file, tmp_path / "model.onnx")
    shutil.copy(standalone.__file__, tmp_path / "mrcnn_runtime.py")
    image = picture(SIZES[1])
    np.save(tmp_path / "image.npy", image)
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=tmp_path)
    with np.load(tmp_path / "found.npz") as found:
        assert_same(found, stock(model, mapper, image))


@pytest.mark.parametrize(
    "old, new",
    [
        ((160, 256), (480, 768)),
        ((300, 401), (100, 134)),
        ((64, 48), (80, 60)),
        ((50, 50), (50, 77)),
        ((400, 100), (90, 22)),
        ((300, 200), (100, 133)),
        ((200, 300), (101, 250)),
        ((200, 300), (100, 250)),
    ],
)
def test_images_are_resized_as_by_pillow(old, new):
    check_resizing(old, new)


def test_images_are_resized_to_odd_shapes_as_by_pillow():
    rng = np.random.default_rng(0)
    for _ in range(20):
        sides = rng.integers(3, 120, 4).tolist()
        check_resizing(sides[:2], sides[2:])


def check_resizing(old, new):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(new[::-1], Image.BILINEAR))
    # Before 13, Pillow began with columns whatever the shapes (its pull request 9549): rounded in between otherwise.
    may_differ = int(PIL.__version__.split(".")[0]) < 13 and old[0] - new[0] > 2 * (old[1] - new[1])
    difference = np.abs(standalone.resize(pixels, *new).astype(int) - expected).max()
    assert difference <= may_differ, (old, new)


@pytest.mark.parametrize("method", ["stock", "quadratic", "dark", "oks"])
def test_keypoints_are_decoded_as_by_the_operator(method):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 4, 14, 14, generator=generator)
    maps = torch.nn.functional.interpolate(maps, (28, 28), mode="bicubic") * 3
    maps[0, 0] = 0
    maps[0, 0, 0, 5] = 9  # at the border
    start = torch.rand(6, 2, generator=generator) * 50
    rois = torch.cat([start, start + torch.rand(6, 2, generator=generator) * 90 + 0.2], dim=1)
    options = {"sigmas": [0.03, 0.05, 0.07, 0.1], "covered": 0.5} if method == "oks" else {}
    tensors = {**options, "sigmas": torch.tensor(options["sigmas"])} if options else {}
    expected = heatmaps_to_keypoints(maps, rois, method, **tensors)[:, :, [0, 1, 3]].numpy()
    found = standalone.decode_keypoints(maps.numpy(), rois.numpy(), method, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_masks_are_pasted_as_by_detectron2():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(4, 1, 28, 28, generator=generator)
    boxes = torch.tensor(
        [[3.2, 4.7, 60.1, 50.9], [0, 0, 100, 80], [90.5, 70.5, 91.2, 71.9], [40, 20, 44, 79.9]]
    )
    expected = paste_masks_in_image(masks[:, 0], boxes, (80, 100)).numpy()
    found = standalone.paste_masks(masks[:, 0].numpy(), boxes.numpy(), (80, 100))
    assert expected.any(axis=(1, 2)).sum() >= 3 and (found != expected).mean() < 1e-4


def test_gray_images():
    about = {"pixel_mean": [1.0], "input_format": "L", "size_divisibility": 0}
    image = picture((40, 56))
    expected = utils.convert_PIL_to_numpy(Image.fromarray(image), "L")
    assert (standalone._in_format(image, "RGB", about) == expected).all()
    assert (standalone._in_format(image[:, :, ::-1], "BGR", about) == expected).all()
    assert standalone._in_format(image[:, :, 0], "RGB", about).shape == (40, 56, 1)


def test_predictions_of_an_exported_file(onnx_file, model, mapper, tmp_path):
    image = picture(SIZES[1])
    Image.fromarray(image).save(tmp_path / "a.png")
    predictor = load_predictor(str(onnx_file))
    assert predictor.metadata.thing_classes == ["a", "b", "c"] and predictor.metadata.keypoint_names == NAMES
    ((_, found),) = predictions(str(onnx_file), tmp_path / "a.png", only="b")
    expected = stock(model, mapper, image)
    expected = expected[expected.pred_classes == 1]
    assert len(expected) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.02)
    assert (np.asarray(found.pred_masks) != np.asarray(expected.pred_masks)).mean() < 1e-3
    for options, message in (
        ({"opts": ["A", "1"]}, "is an exported model, which takes no config options: A 1"),
        ({"device": "cuda"}, "was exported for cpu, and cannot run on cuda"),
        ({"config": "a.yaml"}, "holds all that it needs: give no config with it"),
    ):
        with pytest.raises(UserError, match=message):
            load_predictor(options.pop("config", None), str(onnx_file), **options)
    with pytest.raises(UserError, match="exported model not found: .*none.onnx"):
        load_predictor(str(tmp_path / "none.onnx"))


def test_how_images_are_resized_is_said_where_it_can_be(onnx_file, caplog):
    from mrcnn_ext.export.describe import describe

    flip = transforms.RandomFlip()
    mapper = DatasetMapper(
        False, augmentations=[transforms.ResizeShortestEdge(96, 150), flip], image_format="BGR"
    )
    assert describe(mapper, None) == {"test_size": None}
    assert "that is by RandomFlip, and not by one ResizeShortestEdge alone" in caplog.text


# --- OpenVINO ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openvino_file(model, mapper, metadata, tmp_path_factory):
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("openvino") / "model.xml"
    exported = export_model(model, path, mapper=mapper, metadata=metadata)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    assert exported.metadata["precision"] == "float32"
    return path


def test_openvino_gives_the_models_answers(openvino_file, model, mapper):
    detector = standalone.Detector(openvino_file)
    assert detector.names == ["a", "b", "c"]
    for size in SIZES:
        image = picture(size)
        assert_same(detector(image), stock(model, mapper, image))
    blank = np.zeros((60, 90, 3), np.uint8)
    expected = stock(model, mapper, blank)
    assert len(detector(blank)["scores"]) == len(expected)


def test_openvino_files_run_as_models(openvino_file, model):
    exported = ExportedModel(openvino_file)
    image = torch.as_tensor(picture((96, 128)).transpose(2, 0, 1).copy())
    with torch.no_grad():
        (expected,) = model([{"image": image}])
    (found,) = exported([{"image": image}])
    torch.testing.assert_close(
        found["instances"].pred_boxes.tensor, expected["instances"].pred_boxes.tensor, rtol=0, atol=0.02
    )


def test_openvino_serves_several_at_once(openvino_file):
    """Each thread gets what it asked for."""
    exported = ExportedModel(openvino_file, threads=2, streams=2)
    images = [torch.as_tensor(picture(size).transpose(2, 0, 1).copy()) for size in ((96, 128), (128, 96))]
    expected = [exported.detect(image) for image in images]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda number: exported.detect(images[number % 2]), range(12)))
    for number, result in enumerate(found):
        for name, value in expected[number % 2].items():
            torch.testing.assert_close(result[name], value, rtol=1e-3, atol=1e-3)


def test_precisions_that_cannot_be(model, tmp_path):
    for options, message in (
        (
            {"precision": "int8"},
            "precision int8 needs images or a calibration",
        ),
        (
            {"precision": "bfloat16"},
            "for .onnx files float32 or int8, for .xml files one of float32, bfloat16, int8; got 'bfloat16'",
        ),
        ({"calibration": [torch.zeros(3, 8, 8)]}, "precision int8 needs images or a calibration"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, tmp_path / "model.onnx", **options)
    with pytest.raises(ValueError, match="precision int8 needs images or a calibration"):
        export_model(model, tmp_path / "model.xml", precision="int8")


def test_lower_precisions_are_compared_by_what_they_find(model, mapper):
    with torch.no_grad():
        image = torch.as_tensor(picture((96, 128)).transpose(2, 0, 1).copy())
        (expected,) = model.inference([{"image": image}], do_postprocess=False)
    expected.scores = expected.scores * 0 + 0.9
    moved = expected[:]
    moved.pred_boxes = moved.pred_boxes.clone()
    moved.pred_boxes.tensor += 0.3
    assert _missing(moved, expected) == ""
    moved.pred_classes = (moved.pred_classes + 1) % 3
    assert f"it finds 0 of the {len(expected)} objects" in _missing(moved, expected)
    assert issubclass(WrongAnswersError, RuntimeError)


def test_metadata_is_plain_json(onnx_file):
    about = ExportedModel(onnx_file).metadata
    assert json.loads(json.dumps(about)) == about and about["input_format"] == "BGR"
