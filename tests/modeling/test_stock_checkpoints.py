"""The R-50-FPN models of detectron2's zoo against ours: one state dict for both, the same outputs."""

import pytest
import torch

pytest.importorskip("detectron2")
from detectron2.modeling import build_model

from mrcnn_ext import model_zoo
from mrcnn_ext.model_zoo import detectron2_zoo

pytestmark = pytest.mark.detectron2

PAIRS = [
    ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN"),
    ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", "COCO-Keypoints/keypoint_rcnn_R_50_FPN"),
]


def build(cfg):
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [57.375, 57.120, 58.395]  # keeps the activations of random weights in bounds
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return build_model(cfg).eval()


@pytest.mark.parametrize("stock_name, our_name", PAIRS, ids=["mask", "keypoint"])
def test_stock_state_dict_loads_and_gives_the_stock_outputs(stock_name, our_name):
    torch.manual_seed(0)
    stock = build(detectron2_zoo.get_config(f"{stock_name}.yaml"))
    for module in stock.backbone.modules():
        if isinstance(module, torch.nn.Conv2d) and module.norm is not None:
            module.norm.weight.normal_(0.3, 0.03)  # a trained model's frozen statistics are no identity
    if stock.roi_heads.mask_on:
        stock.roi_heads.mask_head.predictor.weight.data.normal_(std=0.1)  # or every mask is about 0.5
    ours = build(model_zoo.get_config(f"{our_name}.yaml"))
    ours.load_state_dict(stock.state_dict())  # strict: no missing key, none unexpected

    sizes = [(128, 160), (96, 128)]
    images = [{"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)} for size in sizes]
    with torch.no_grad():
        expected = stock.inference(images, do_postprocess=False)
        got = ours.inference(images, do_postprocess=False)
    for a, b in zip(got, expected, strict=True):
        assert len(a) == len(b) == 10
        assert torch.equal(a.pred_classes, b.pred_classes)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
        for name in ("pred_masks", "pred_keypoint_heatmaps"):
            assert a.has(name) == b.has(name)
            if a.has(name):
                scale = b.get(name).abs().max()
                torch.testing.assert_close(a.get(name) / scale, b.get(name) / scale, rtol=0, atol=1e-5)
        if a.has("pred_keypoints"):
            torch.testing.assert_close(
                a.pred_keypoints[..., :2], b.pred_keypoints[..., :2], rtol=0, atol=1e-3
            )
