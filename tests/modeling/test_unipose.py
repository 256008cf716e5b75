"""UniPose: trains, infers in the pixels of the original, and what it shares with other models."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from mrcnn_ext import accelerate
from mrcnn_ext.accel import FusedModule
from mrcnn_ext.benchmark.model import calibrate
from mrcnn_ext.export import export_model

pytestmark = pytest.mark.detectron2

OPTIONS = (
    *("MODEL.META_ARCHITECTURE", "UniPose", "MODEL.BACKBONE.NAME", "build_timm_backbone"),
    *("MODEL.TIMM.OUT_FEATURES", "['res2', 'res3']", "MODEL.TIMM.ARGS.output_stride", "8"),
    *("MODEL.UNIPOSE.RATES", "[1, 2]", "MODEL.UNIPOSE.DIM", "8", "MODEL.UNIPOSE.LOW_DIM", "4"),
    *("MODEL.ROI_KEYPOINT_HEAD.TARGET_SIGMA", "2.0"),
)


@pytest.fixture
def make_model(tiny_cfg):
    def make(*opts):
        torch.manual_seed(0)
        cfg = tiny_cfg()
        cfg.MODEL.TIMM.ARGS.output_stride = 8
        cfg.merge_from_list([*OPTIONS, *opts])
        return build_model(cfg)

    return make


def test_it_learns_where_the_keypoints_are(make_model, make_batch):
    model, batch = make_model(), make_batch([[4, 4, 40, 60]], [[30, 10, 76, 50]])
    for given in batch:
        given["instances"].gt_keypoints.tensor[..., 2] = 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model.train()
    with EventStorage():
        for _ in range(40):
            losses = model(batch)
            optimizer.zero_grad()
            losses["loss_keypoint"].backward()
            assert set(losses) == {"loss_keypoint"} and all(p.grad is not None for p in model.parameters())
            optimizer.step()
    for result, given in zip(model.eval()(batch), batch, strict=True):
        found = result["instances"].pred_keypoints[0, :, :2]
        distance = (found - given["instances"].gt_keypoints.tensor[0, :, :2]).norm(dim=1)
        assert distance.median() < 3, distance


def test_results_are_in_pixels_of_the_original(make_model, make_batch):
    model, (given,) = make_model().eval(), make_batch([[4, 4, 40, 60]])
    whole = model([given])[0]["instances"]
    assert whole.pred_boxes.tensor.tolist() == [[0, 0, 80, 64]] and whole.image_size == (64, 80)
    placed = {
        **given,
        **{"height": 200, "width": 300, "crop_box": (100, 50, 180, 114), "person_box": (104, 54, 140, 110)},
    }
    moved = model([placed])[0]["instances"]
    assert moved.image_size == (200, 300) and moved.pred_boxes.tensor.tolist() == [[104, 54, 140, 110]]
    expected = whole.pred_keypoints[..., :2] + torch.tensor([100.0, 50.0])
    torch.testing.assert_close(moved.pred_keypoints[..., :2], expected, rtol=0, atol=0.02)
    assert 0 <= float(moved.scores) <= 1 and moved.pred_classes.tolist() == [0]


def test_without_people_and_with_too_many(make_model, make_batch):
    model = make_model()
    with EventStorage():
        loss = model.train()(make_batch([], []))["loss_keypoint"]
        loss.backward()
        assert loss == 0 and all(p.grad is not None for p in model.parameters())
        with pytest.raises(ValueError, match="one person an image, and an image has 2: set INPUT.PERSON"):
            model(make_batch([[4, 4, 40, 60], [30, 10, 76, 50]]))
    with pytest.raises(ValueError, match="MODEL.UNIPOSE.HIGH_FEATURE is 'res5', and the backbone gives res2"):
        make_model("MODEL.UNIPOSE.HIGH_FEATURE", "res5")


def test_accelerated_it_gives_the_same(make_model, make_batch):
    model, batch = make_model().eval(), make_batch([[4, 4, 40, 60]], [[30, 10, 76, 50]])
    calibrate(model, batch)
    fast = accelerate(model, bf16=False)
    assert isinstance(fast.backbone, FusedModule)
    assert any(isinstance(module, FusedModule) for module in fast.keypoint_head.modules())
    heatmaps = [m.keypoint_head.layers(m.backbone(m.preprocess_image(batch).tensor)) for m in (fast, model)]
    torch.testing.assert_close(*heatmaps, rtol=1e-4, atol=1e-5)
    assert heatmaps[0].shape == (2, 17, 64, 80) and fast(batch)[1]["instances"].has("pred_keypoints")
    with EventStorage():
        expected = model.train()(batch)["loss_keypoint"].item()
        loss = accelerate(model, training=True)(batch)["loss_keypoint"].item()
    assert loss == pytest.approx(expected, rel=1e-3)
    rounded = accelerate(model.eval(), bf16=True)(batch)[0]["instances"]
    assert rounded.pred_keypoints.dtype == torch.float32
    assert list(fast.state_dict()) == list(model.state_dict())


def test_export_is_refused(make_model, tmp_path):
    with pytest.raises(NotImplementedError, match="UniPose has no export: only detectron2's GeneralizedRCNN"):
        export_model(make_model().eval(), tmp_path / "model.onnx")


def test_an_image_of_another_size_is_padded(make_model, make_batch):
    model = make_model().eval()
    small, large = make_batch([[4, 4, 40, 60]])[0], make_batch([[4, 4, 40, 60]], size=(96, 96))[0]
    results = model([small, large])
    assert [result["instances"].image_size for result in results] == [(64, 80), (96, 96)]
    points = results[0]["instances"].pred_keypoints[0]
    assert (points[:, 0] <= 80).all() and (points[:, 1] <= 64).all()
    assert isinstance(results[1]["instances"].pred_boxes, Boxes)
