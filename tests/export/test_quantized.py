"""int8 by our own calibration in ONNX files, which onnxruntime and OpenVINO run."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from mrcnn_ext import accelerate
from mrcnn_ext.accel import Int8Calibration, Int8Layer, cpu_features
from mrcnn_ext.accel.int8_ranges import Int8Range
from mrcnn_ext.benchmark.agreement import agreement
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.export import export_model
from mrcnn_ext.export.quantized import calibration_for, quantize_layers, store_int8_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


def small_network():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(16)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    norm.running_mean.normal_()
    return nn.Sequential(
        Conv2d(8, 16, 1, norm=norm, activation=nn.functional.relu),
        nn.ConvTranspose2d(16, 8, 2, 2),
        nn.Flatten(),
        nn.Linear(8 * 8 * 8, 10),
    ).eval()


@torch.no_grad()
def test_layers_compute_with_rounded_values(tmp_path):
    network = small_network()
    x = torch.randn(1, 8, 4, 4)
    ranges = {"0": Int8Range(1 / 32, 100), "1": Int8Range(1 / 16, 0), "3": Int8Range(1 / 64, 128)}
    quantized = copy.deepcopy(network)
    layers = {name: Int8Layer(*range_, 0.0) for name, range_ in ranges.items()}
    quantize_layers(quantized, Int8Calibration("", layers))
    expected = network(x)
    result = quantized(x)
    assert 1e-4 < (result - expected).abs().max() / expected.std() < 0.1
    torch.onnx.export(quantized, x, tmp_path / "model.onnx", opset_version=16, dynamo=False)
    file = onnx.load(tmp_path / "model.onnx")
    size = file.ByteSize()
    store_int8_weights(file)
    assert file.ByteSize() < 0.6 * size
    kinds = [node.op_type for node in file.graph.node]
    assert kinds.count("QuantizeLinear") == 3 and kinds.count("DequantizeLinear") == 6
    assert "BatchNormalization" not in kinds
    constants = [value for value in file.graph.initializer if value.data_type == onnx.TensorProto.INT8]
    assert sorted(tuple(value.dims) for value in constants if len(value.dims) > 1) == [
        (10, 512),
        (16, 8, 1, 1),
        (16, 8, 2, 2),
    ]
    session = onnxruntime.InferenceSession(file.SerializeToString())
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, result.numpy(), rtol=1e-4, atol=1e-5)


def matched(one, other):
    """The share of detections, masks aside, which are not pasted."""
    for instances in (one, other):
        if instances.has("pred_masks"):
            instances.remove("pred_masks")
    return agreement([one], [other])["matched"]


def test_calibrations_of_other_models_are_refused(tmp_path):
    network = small_network()
    other = Int8Calibration("0" * 64, {})
    other.save(tmp_path / "int8.json")
    for given in (other, str(tmp_path / "int8.json")):
        with pytest.raises(ValueError, match="made for other weights; calibrate this model"):
            calibration_for(network, given)
    layer = Int8Layer(1.0, 0, 0.0)
    with pytest.raises(ValueError, match="has nowhere.conv, which is no layer of this model"):
        quantize_layers(network, Int8Calibration("", {"nowhere.conv": layer}))
    with pytest.raises(ValueError, match="Flatten cannot be exported in int8"):
        quantize_layers(network, Int8Calibration("", {"2": layer}))


@pytest.mark.skipif(
    not cpu_features.int8_kernels_are_available(),
    reason="the compiled operators are not built for this processor",
)
def test_a_detector_gives_what_it_gives_accelerated(tiny_cfg, make_batch, tmp_path):
    torch.manual_seed(0)
    limits = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.05", "TEST.DETECTIONS_PER_IMAGE", "30"
    model = build_model(tiny_cfg("MODEL.KEYPOINT_ON", "False", *limits)).eval()
    batch = make_batch(BOXES, size=(96, 128))[:1]
    calibrate(model, batch)
    for name, value in model.named_parameters():
        if name.endswith(("cls_score.weight", "bbox_pred.weight")):
            value.data.mul_(10)
    fast = accelerate(model, bf16=False, int8=[batch])
    with torch.no_grad():
        (expected,) = fast.inference(batch, do_postprocess=False)
        rounded = copy.deepcopy(model)
        quantize_layers(rounded, fast.acceleration.int8)
        (same,) = rounded.inference(batch, do_postprocess=False)
        (plain,) = model.inference(batch, do_postprocess=False)
    assert len(expected) == 30 and len(fast.acceleration.int8.layers) > 3
    fast.acceleration.int8.save(tmp_path / "int8.json")
    options = {"precision": "int8", "write_anyway": True}  # of random weights: their scores are alike
    onnx_path, xml_path = tmp_path / "model.onnx", tmp_path / "model.xml"
    found = export_model(fast, onnx_path, calibration=tmp_path / "int8.json", **options)
    assert found.metadata["precision"] == "int8"
    kinds = [node.op_type for node in onnx.load(onnx_path).graph.node]
    assert kinds.count("QuantizeLinear") == len(fast.acceleration.int8.layers)
    found = found.instances(batch[0]["image"])
    assert matched(same, found) > 0.9
    assert matched(expected, found) > 0.7
    assert not torch.equal(found.scores, plain.scores)
    pytest.importorskip("openvino")
    found = export_model(model, xml_path, calibration=fast.acceleration.int8, **options)
    assert matched(same, found.instances(batch[0]["image"])) > 0.7
