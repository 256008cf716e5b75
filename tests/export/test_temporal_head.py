"""A keypoint head with a state as an ONNX file: its answers over a track, and what is refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
import onnxruntime
from detectron2.layers import ShapeSpec

from mrcnn_ext.accel import fuse
from mrcnn_ext.accel.policy import KernelPolicy
from mrcnn_ext.export import WrongAnswersError, export_temporal_head, temporal
from mrcnn_ext.modeling import ConvLSTMKeypointHead, HeatmapKeypointHead, UniPoseLSTMKeypointHead

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
HEADS = {
    "ConvLSTM": lambda: ConvLSTMKeypointHead(SHAPE, num_keypoints=5, conv_dims=[32], hidden_channels=4),
    "as it lies": lambda: ConvLSTMKeypointHead(
        SHAPE, num_keypoints=5, conv_dims=[16], hidden_channels=4, align_state=False
    ),
    "UniPose-LSTM": lambda: UniPoseLSTMKeypointHead(
        SHAPE, num_keypoints=5, conv_dims=[16], hidden_channels=4, conv_norm="BN", wasp_rates=[1, 2]
    ),
}


def make(name):
    torch.manual_seed(0)
    head = HEADS[name]().eval()
    torch.nn.init.normal_(head.network.merge.weight)
    return head


@pytest.mark.parametrize("name", HEADS)
def test_a_track_has_the_answers_of_the_head(name, tmp_path):
    head, path = make(name), tmp_path / "head.onnx"
    export_temporal_head(head, path, channels=8)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    shapes = json.loads(session.get_modelmeta().custom_metadata_map["mrcnn_ext.json"])["state"]
    given = {key: np.zeros((3, *shape), np.float32) for key, shape in shapes.items()}
    state = None
    for _ in range(6):
        x, boxes = torch.randn(3, 8, 14, 14), torch.tensor([8.0, 5, 60, 90]) + 5 * torch.randn(3, 4)
        frame = {"features": x.numpy(), **({"boxes": boxes.numpy()} if head.align_state else {})}
        heatmaps, *after = session.run(None, {**frame, **given})
        with torch.no_grad():
            features = head.network.features(x)
            state = head.first_state(features, boxes) if state is None else state
            expected, state = head.next_step(features, boxes, state)
        np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=1e-4)
        for found, part in zip(after, state, strict=head.align_state):
            np.testing.assert_allclose(found, part, rtol=0, atol=1e-4)
        given = dict(zip(given, after, strict=True))
    assert list(given) == [*head.network.state_names, "last_boxes"][: len(after)]
    with torch.no_grad():
        assert (head.network(x)[0] - expected).abs().max() > 1e-2, "the state changes nothing"


def test_an_accelerated_head_is_exported_as_it_was(tmp_path):
    head = make("ConvLSTM")
    fuse(head, KernelPolicy(dtype=torch.float32))
    export_temporal_head(head, tmp_path / "head.onnx", channels=8)
    assert "Fused" in str(head)


def test_wrong_answers_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(temporal, "_ERROR", -1.0)
    with pytest.raises(WrongAnswersError, match="head.onnx was not written: its heatmaps differ .* by up to"):
        export_temporal_head(make("ConvLSTM"), tmp_path / "head.onnx", channels=8)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="path must end with .onnx, got head.ts"):
        export_temporal_head(make("ConvLSTM"), "head.ts", channels=8)
    other = HeatmapKeypointHead(SHAPE, num_keypoints=5, conv_dims=[8])
    with pytest.raises(
        ValueError, match="HeatmapKeypointHead carries no state: it is exported with its model"
    ):
        export_temporal_head(other, tmp_path / "head.onnx", channels=8)
