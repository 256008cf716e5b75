"""Keypoint heads with a state: over clips in training, over the tracks of a stream at inference."""

import copy

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.config import LazyCall, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import build_keypoint_head
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mrcnn_ext import accelerate
from mrcnn_ext.layers.boxes import move_maps
from mrcnn_ext.modeling import (
    ConvLSTMKeypointHead,
    HeatmapKeypointHead,
    UniPoseLSTMKeypointHead,
    streaming,
)
from mrcnn_ext.modeling.fuse_rules.detector import Detectron2

pytestmark = pytest.mark.detectron2

SHAPE = ShapeSpec(channels=8, height=14, width=14)
HEADS = {
    "ConvLSTM": (ConvLSTMKeypointHead, {"conv_dims": [16], "hidden_channels": 8}),
    "UniPose-LSTM": (
        UniPoseLSTMKeypointHead,
        {"conv_dims": [16], "hidden_channels": 8, "wasp_rates": [1, 2], "num_lstm_convs": 1},
    ),
}


def build(name, seed=0, **arguments):
    """A head whose state matters, which it does not at first."""
    cls, defaults = HEADS[name]
    torch.manual_seed(seed)
    head = cls(SHAPE, num_keypoints=17, loss_normalizer="visible", **{**defaults, **arguments})
    torch.nn.init.normal_(head.network.merge.weight, std=0.3)
    return head


def loss_of(head, x, instances):
    with EventStorage():
        return head.train()(x, instances)["loss_keypoint"]


@pytest.mark.parametrize("aligned", [True, False], ids=["aligned", "as it lies"])
@pytest.mark.parametrize("name", HEADS)
def test_training_goes_along_the_tracks_of_a_clip(name, aligned, proposals):
    head, x = build(name, align_state=aligned), torch.randn(4, 8, 14, 14)
    frames = proposals([[4, 4, 40, 60], [30, 10, 76, 50]], [], [[32, 10, 76, 50], [6, 4, 40, 60]])
    assert_close = torch.testing.assert_close
    alone = head.train().heatmaps(x, frames)
    assert_close(alone, head.layers(x))
    frames[0].gt_track_ids, frames[2].gt_track_ids = torch.tensor([3, 8]), torch.tensor([8, 3])
    first, state = head.network(x[:2])
    state = [part[[1, 0]] for part in state]
    if aligned:
        before, now = frames[0].proposal_boxes.tensor[[1, 0]], frames[2].proposal_boxes.tensor
        state = [move_maps(part, before, now) for part in state]
    second, _ = head.network(x[2:], state)
    assert_close(head.heatmaps(x, frames), torch.cat([first, second]))
    assert (second - alone[2:]).abs().max() > 1e-3
    loss_of(head, x, frames).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    frames[2].gt_track_ids[:] = -1
    assert_close(head.heatmaps(x, frames), alone)


@pytest.mark.parametrize("name", HEADS)
def test_no_ground_truth_gives_a_zero_loss_with_a_gradient(name, proposals):
    loss = loss_of(head := build(name), torch.randn(0, 8, 14, 14), proposals([], []))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None for p in head.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_what_only_an_earlier_frame_shows(name, proposals):
    """Two people are told apart by their first frame alone."""
    boxes = [[4, 4, 40, 60], [30, 10, 76, 50]]
    frames, head = proposals(boxes, boxes), build(name, target_sigma=1.0)
    frames[1].gt_keypoints = frames[0].gt_keypoints
    x = torch.randn(4, 8, 14, 14)
    x[2:] = x[2]
    losses = {}
    for tracked in (True, False):
        for frame in frames:
            frame.gt_track_ids = torch.tensor([1, 2] if tracked else [-1, -1])
        trained = copy.deepcopy(head)
        optimizer = torch.optim.Adam(trained.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss_of(trained, x, frames).backward()
            optimizer.step()
        losses[tracked] = loss_of(trained, x, frames).item()
    assert losses[True] < losses[False] - 0.3, losses


def stream_of(lefts):
    image = Instances((64, 200))
    image.pred_boxes = Boxes(torch.tensor([[left, 4.0, left + 30, 60.0] for left in lefts]).reshape(-1, 4))
    image.scores, image.pred_classes = (
        torch.full((len(lefts),), 0.9),
        torch.zeros(len(lefts), dtype=torch.int64),
    )
    return image


class Model(torch.nn.Module):
    """A head with the call of a detector, whose RoIs and detections are given."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    @torch.no_grad()
    def forward(self, inputs):
        found = [copy.deepcopy(image["found"]) for image in inputs]
        return self.head.eval()(torch.cat([image["x"] for image in inputs]), found)


def make_inputs(video_id=None):
    torch.manual_seed(1)
    lefts = [[4, 100], [102, 6], [8], [], [10, 104]]
    return [
        {"x": torch.randn(len(each), 8, 14, 14), "found": stream_of(each), "video_id": video_id}
        for each in lefts
    ]


def heatmaps_of(results):
    return torch.cat([result.pred_keypoint_heatmaps for result in results])


@pytest.mark.parametrize("name", HEADS)
def test_a_stream_carries_the_state_of_each_track(name):
    model, inputs = Model(build(name)), make_inputs()
    with streaming(model, one_video=True):
        results = [model([frame])[0] for frame in inputs]
    assert [result.track_ids.tolist() for result in results] == [[1, 2], [2, 1], [1], [], [1, 2]]
    network, states, expected = model.head.network, {}, []
    for frame, result in zip(inputs, results, strict=True):
        for row, track in enumerate(result.track_ids.tolist()):
            with torch.no_grad():
                box = frame["found"].pred_boxes.tensor[row : row + 1]
                before, state = states.get(track, (box, None))
                if state is not None:
                    state = [move_maps(part, before, box) for part in state]
                heatmaps, state = network(frame["x"][row : row + 1], state)
                states[track] = box, state
            expected.append(heatmaps)
    torch.testing.assert_close(heatmaps_of(results), torch.cat(expected))
    assert model.head.stream is None and not model._forward_pre_hooks
    with streaming(model, one_video=True):
        batches = [*model(inputs[:2]), *model(inputs[2:])]
    torch.testing.assert_close(heatmaps_of(batches), heatmaps_of(results))
    alone = [model([frame])[0] for frame in inputs]
    assert not alone[0].has("track_ids")
    assert (heatmaps_of(alone) - heatmaps_of(results)).abs().max() > 1e-3


def test_a_state_stays_where_it_is_in_the_image():
    """What a map shows of a place, it shows after its box has moved and grown."""
    maps = torch.arange(196.0).view(1, 1, 14, 14).repeat(2, 1, 1, 1)
    boxes = torch.tensor([[10.0, 20, 24, 34], [0, 0, 28, 28]])
    same = move_maps(maps, boxes, boxes)
    torch.testing.assert_close(same, maps)
    right = move_maps(maps, boxes, boxes + torch.tensor([1.0, 0, 1, 0]))
    torch.testing.assert_close(right[0, 0, :, :-1], maps[0, 0, :, 1:])
    assert not right[0, 0, :, -1].any(), "nothing is known of what the box did not cover"
    half = move_maps(maps, boxes, torch.tensor([[10.0, 20, 17, 27], [0, 0, 14, 14]]))
    torch.testing.assert_close(half[0, 0, 1:, 1:], half[1, 0, 1:, 1:])
    # The centre of its last cell is at 6.75 of 14 cells: a quarter of a cell beyond that of cell 6.
    assert half[0, 0, 13, 13].item() == pytest.approx(maps[0, 0, 6, 6].item() + 0.25 * 15)
    begins = move_maps(torch.zeros(1, 2, 14, 14), torch.zeros(1, 4), boxes[:1])
    assert not begins.any() and begins.isfinite().all()


def test_each_video_begins_anew_and_images_are_by_themselves():
    model, single = Model(build("ConvLSTM")), make_inputs()
    expected = [model([frame])[0] for frame in single]
    with streaming(model):
        both = [model([frame])[0] for frame in [*make_inputs(1), *make_inputs(2)]]
        images = [model([frame])[0] for frame in single]
    torch.testing.assert_close(heatmaps_of(both[:5]), heatmaps_of(both[5:]))
    assert both[5].track_ids.tolist() == [1, 2]
    torch.testing.assert_close(heatmaps_of(images), heatmaps_of(expected))
    assert (heatmaps_of(both[:5]) - heatmaps_of(images)).abs().max() > 1e-3


def test_objects_that_are_not_sure_have_no_state():
    model, inputs = Model(build("ConvLSTM")), make_inputs()
    for frame in inputs:
        frame["found"].scores[:] = 0.2
    with streaming(model, min_score=0.3, one_video=True):
        results = [model([frame])[0] for frame in inputs]
    assert results[0].track_ids.tolist() == [0, 0]
    torch.testing.assert_close(heatmaps_of(results), heatmaps_of([model([frame])[0] for frame in inputs]))


@pytest.mark.parametrize("name", HEADS)
def test_weights_of_a_head_of_single_frames_load(name):
    wasp = {"wasp_rates": HEADS[name][1].get("wasp_rates", ())}
    torch.manual_seed(3)
    single = HeatmapKeypointHead(SHAPE, num_keypoints=17, conv_dims=[16], **wasp)
    cls, arguments = HEADS[name]
    head = cls(SHAPE, num_keypoints=17, **arguments)
    result = head.load_state_dict(single.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(
        key.startswith(("network.lstm", "network.merge", "network.after")) for key in result.missing_keys
    )
    x = torch.randn(2, 8, 14, 14)
    torch.testing.assert_close(head.layers(x), single.layers(x))
    head.load_state_dict(head.state_dict())


KEYS = {
    "ConvLSTM": ["NAME", "ConvLSTMKeypointHead", "LSTM_DIM", "8"],
    "UniPose-LSTM": [
        "NAME",
        "UniPoseLSTMKeypointHead",
        "LSTM_DIM",
        "8",
        "LSTM_CONVS",
        "1",
        "WASP_RATES",
        "[1, 2]",
    ],
}


@pytest.mark.parametrize("roi_heads", ["StandardROIHeads", "FusedCascadeROIHeads"])
@pytest.mark.parametrize("name", HEADS)
def test_clips_and_streams_of_a_model_accelerated_or_not(tiny_cfg, make_batch, name, roi_heads):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", roi_heads, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True")
    cfg.MODEL.ROI_KEYPOINT_HEAD.merge_from_list(KEYS[name])
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.nn.init.normal_(model.roi_heads.keypoint_head.network.merge.weight)
    batch = make_batch([[4, 4, 40, 60], [30, 10, 76, 50]], [[6, 4, 40, 60], [32, 10, 76, 50]], [])
    for frame in batch:
        frame["instances"].gt_track_ids = torch.arange(len(frame["instances"]))
        frame["video_id"] = 1
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    lstm = model.roi_heads.keypoint_head.network.lstm.gates.weight.grad
    assert lstm[8:16].abs().sum() > 0, "the forget gate is never needed without a frame before"
    model.eval()
    fast = accelerate(model, bf16=False)
    found = {}
    with torch.no_grad():
        for key, each in {"stock": model, "fast": fast}.items():
            with streaming(each, min_score=0.0):
                found[key] = [each([frame])[0]["instances"] for frame in [batch[0]] * 3]
        (alone,) = model([batch[0]])
    for stock, quick in zip(found["stock"], found["fast"], strict=True):
        torch.testing.assert_close(
            quick.pred_keypoint_heatmaps, stock.pred_keypoint_heatmaps, rtol=1e-3, atol=1e-3
        )
        assert quick.track_ids.tolist() == stock.track_ids.tolist() == [1, 2, 3, 4, 5]
    torch.testing.assert_close(
        found["stock"][0].pred_keypoint_heatmaps, alone["instances"].pred_keypoint_heatmaps
    )
    if roi_heads == "StandardROIHeads":
        assert "from frame to frame" in Detectron2().why_not_padded(model), "padding would have tracks"
    later = found["stock"][2].pred_keypoint_heatmaps
    assert (later - alone["instances"].pred_keypoint_heatmaps).abs().max() > 1e-3


def test_config_sets_every_argument(tiny_cfg):
    cfg = tiny_cfg(
        *["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(32,)", "MODEL.ROI_KEYPOINT_HEAD.NORM", "GN"],
        *["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "5", "MODEL.ROI_KEYPOINT_HEAD.TARGET_SIGMA", "1.5"],
        *["MODEL.ROI_KEYPOINT_HEAD.UP_SCALE", "1.0", "MODEL.ROI_KEYPOINT_HEAD.WASP_RATES", "[1, 3]"],
        *["MODEL.ROI_KEYPOINT_HEAD.ALIGN_STATE", "False"],
        *["MODEL.ROI_KEYPOINT_HEAD.LSTM_DIM", "32", "MODEL.ROI_KEYPOINT_HEAD.LSTM_CONVS", "3"],
    )
    for cls in (ConvLSTMKeypointHead, UniPoseLSTMKeypointHead):
        cfg.MODEL.ROI_KEYPOINT_HEAD.NAME = cls.__name__
        head = build_keypoint_head(cfg, SHAPE)
        assert isinstance(head, cls) and head.target_sigma == 1.5
        assert head.network.lstm.hidden_channels == 32 and not head.align_state
        assert [branch.dilation for branch in head.network.wasp.branches] == [(1, 1), (3, 3)]
        assert isinstance(head.network.convs[0].norm, torch.nn.GroupNorm)
        assert head.layers(torch.randn(1, 8, 14, 14)).shape == (1, 5, 28, 28)
        lazy = LazyCall(cls)(input_shape=SHAPE, num_keypoints=5, conv_dims=[32], hidden_channels=32)
        assert instantiate(lazy).network.lstm.hidden_channels == 32
    assert len(head.network.after) == 3
    cfg.MODEL.ROI_KEYPOINT_HEAD.WASP_RATES = []
    with pytest.raises(ValueError, match="has a waterfall .*: give the dilations in wasp_rates"):
        build_keypoint_head(cfg, SHAPE)
