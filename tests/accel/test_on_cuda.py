"""Accelerated detectors on a GPU, where there is one: the results of the CPU, replayed graphs, and no waiting."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model
from torch import nn

from mrcnn_ext.accel import FusedConv2d, KernelPolicy
from mrcnn_ext.accel.padding import PaddedResults
from mrcnn_ext.evaluation.bitmap_rle import encode_masks
from mrcnn_ext.modeling import accelerate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
BOXES = ([4, 4, 40, 60], [30, 10, 76, 50])


@pytest.fixture
def model(tiny_cfg, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    for key, value in model.state_dict().items():
        if key.endswith(("cls_score.weight", "bbox_pred.weight", "rpn_head.conv.weight")):
            value.mul_(5)
    return model


@pytest.fixture
def batch(make_batch):
    return make_batch(BOXES, BOXES[:1], size=(64, 96))


@torch.no_grad()
def infer(model, batch):
    return [output["instances"].to("cpu") for output in model(batch)]


def test_results_on_cuda_are_those_of_the_cpu(model, batch):
    expected = infer(accelerate(model, bf16=False), batch)
    fast = accelerate(model.cuda(), bf16=False)
    assert fast.acceleration.steps["padded"] == "proposals and detections"
    assert fast.acceleration.steps["cuda_graphs"].startswith("the detector as a whole, else backbone, ")
    for _ in range(5):  # the last ones replayed
        for found, other in zip(infer(fast, batch), expected, strict=True):
            assert torch.equal(found.pred_classes, other.pred_classes)
            torch.testing.assert_close(found.pred_boxes.tensor, other.pred_boxes.tensor, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(found.scores, other.scores, rtol=1e-3, atol=1e-3)
            assert (found.pred_masks != other.pred_masks).float().mean() < 1e-3
            distance = (found.pred_keypoints - other.pred_keypoints)[..., :2].abs()
            assert (distance.amax(dim=2) <= 0.5).float().mean() > 0.95
    recordings = fast.inference.graphs.recordings
    assert recordings._made and not recordings.why_not


@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_waits_for_cuda_before_the_detections_are_counted(model, batch, monkeypatch, bf16):
    fast = accelerate(model.cuda(), bf16=bf16)
    for item in batch:
        item["image"] = item["image"].cuda()
    for _ in range(4):
        infer(fast, batch)
    found, counted = PaddedResults.found, []

    def count(self, present):
        torch.cuda.set_sync_debug_mode("default")
        counted.append(len(present))
        return found(self, present)

    monkeypatch.setattr(PaddedResults, "found", count)
    try:
        torch.cuda.set_sync_debug_mode("error")
        with torch.no_grad():
            fast(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert counted == [2]


def test_masks_are_encoded_on_cuda(model, batch):
    with torch.no_grad():
        masks = accelerate(model.cuda(), bf16=False)(batch)[0]["instances"].pred_masks
    assert masks.is_cuda and len(masks) and encode_masks(masks) == encode_masks(masks.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    "geometry", [(1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 2, 2, 4), (7, 2, 3, 1, 1)]
)
@torch.no_grad()
def test_convolutions_are_those_of_float64(monkeypatch, dtype, relu, added, geometry):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    size, stride, padding, dilation, groups = geometry
    layer = nn.Conv2d(32, 48, size, stride, padding, dilation, groups).cuda()
    fused = FusedConv2d(layer, KernelPolicy.choose(torch.device("cuda"), dtype))
    for batch in (2, 0):
        x = torch.randn(batch, 32, 19, 21, device="cuda").to(dtype)
        expected = nn.functional.conv2d(
            x.double(),
            layer.weight.to(dtype).double(),
            layer.bias.to(dtype).double(),
            stride,
            padding,
            dilation,
            groups,
        )
        add = torch.randn_like(expected).to(dtype) if added else None
        expected = expected if add is None else expected + add.double()
        expected = expected.relu() if relu else expected
        found = fused.run(x, relu=relu, add=add)
        assert found.dtype == dtype
        torch.testing.assert_close(
            found.double(),
            expected,
            rtol=2e-2 if dtype == torch.bfloat16 else 2e-3,
            atol=2e-2 if dtype == torch.bfloat16 else 2e-3,
        )
