"""torchvision's published detectors as models of detectron2 and back: the same detections."""

import pytest
import torch
from torchvision.models import detection

from mrcnn_ext.integrations.torchvision import detectron2_weights, transfer_weights

pytest.importorskip("detectron2")
from detectron2.config import instantiate  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

from mrcnn_ext import model_zoo  # noqa: E402
from mrcnn_ext.engine import Checkpointer, UserError  # noqa: E402

HEIGHT, WIDTH = 128, 200  # P6 is 2x4 of an image padded to 128x224: anchors 64 and 56 apart
MASK, KEYPOINT = "COCO-InstanceSegmentation/mask_rcnn", "COCO-Keypoints/keypoint_rcnn"


def torchvision_model(name):
    """Of random weights, with clear scores, and classes without a COCO category that are never found."""
    torch.manual_seed(0)
    make = getattr(detection, f"{name}_resnet50_fpn")
    model = make(weights=None, weights_backbone=None, min_size=HEIGHT, max_size=WIDTH).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            elif "bn" in key and key.endswith(("bias", "running_mean")):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
            elif "bn3.weight" in key:
                value.mul_(0.3)
        head = model.roi_heads.box_predictor
        head.cls_score.weight.mul_(30)
        if len(head.cls_score.bias) == 91:
            head.cls_score.bias[[12, 26, 29, 30, 45, 66, 68, 69, 71, 83]] = -1e4
        else:
            head.cls_score.bias[1] = 4
        model.rpn.head.cls_logits.weight.mul_(30)
    return model


def detectron2_model(name, suffix="yaml"):
    cfg = model_zoo.get_config(f"{name}_R_50_FPN_torchvision.{suffix}")
    if suffix == "py":
        return instantiate(cfg.model).eval()
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).eval()


def detections(model, theirs):
    """Boxes, scores, COCO ids, and masks of the boxes or keypoints, as both call them."""
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1)).byte()
    with torch.no_grad():
        if theirs:
            found = model([image / 255])[0]
            ids = found["labels"]
            return found["boxes"], found["scores"], ids, found.get("keypoints")
        found = model.inference([{"image": image, "height": HEIGHT, "width": WIDTH}])[0]["instances"]
    ids = (
        torch.tensor(COCO_IDS)[found.pred_classes]
        if model.roi_heads.num_classes == 80
        else found.pred_classes + 1
    )
    keypoints = found.pred_keypoints if found.has("pred_keypoints") else None
    return found.pred_boxes.tensor, found.scores, ids, keypoints


COCO_IDS = [id for id in range(1, 91) if id not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def assert_same(ours, theirs):
    assert len(ours[0]) == len(theirs[0]) >= 5
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-3)
    assert torch.equal(ours[2], theirs[2])
    if theirs[3] is not None:
        # The scores of the points are of another kind.
        torch.testing.assert_close(ours[3][..., :2], theirs[3][..., :2], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name, config", [("maskrcnn", MASK), ("keypointrcnn", KEYPOINT)])
def test_the_same_detections_in_detectron2(name, config):
    theirs, ours = torchvision_model(name), detectron2_model(config)
    transfer_weights(theirs, ours)
    assert_same(detections(ours, False), detections(theirs, True))


def test_masks_are_the_same_within_their_boxes():
    theirs, ours = torchvision_model("maskrcnn"), detectron2_model(MASK, "py")
    transfer_weights(theirs, ours)
    pooled = torch.rand(2, 256, 14, 14)
    with torch.no_grad():
        probabilities = theirs.roi_heads.mask_predictor(theirs.roi_heads.mask_head(pooled)).sigmoid()
        mine = ours.roi_heads.mask_head.layers(pooled).sigmoid()
    torch.testing.assert_close(mine, probabilities[:, COCO_IDS], rtol=0, atol=1e-5)


def test_there_and_back():
    ours, theirs, again = detectron2_model(MASK), torchvision_model("maskrcnn"), torchvision_model("maskrcnn")
    transfer_weights(theirs, ours)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    transfer_weights(ours, again)
    assert_same(detections(again, True), detections(theirs, True))


def test_a_file_is_loaded_as_it_is(tmp_path):
    theirs = torchvision_model("maskrcnn")
    # As published: frozen norms, which have no counter, with an epsilon of 0.
    weights = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "maskrcnn_resnet50_fpn_coco.pth")
    for module in theirs.modules():
        if hasattr(module, "running_var"):
            module.eps = 1e-30  # 0 is refused by torch 2.11
    ours = detectron2_model(MASK)
    Checkpointer(ours).load(str(tmp_path / "maskrcnn_resnet50_fpn_coco.pth"))
    assert_same(detections(ours, False), detections(theirs, True))


def test_a_model_for_other_images_refuses_the_file(tmp_path):
    torch.save(torchvision_model("maskrcnn").state_dict(), tmp_path / "maskrcnn.pth")
    cfg = model_zoo.get_config(f"{MASK}_R_50_FPN.yaml")
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(UserError, match=r'PIXEL_STD \[58.395.*, INPUT.FORMAT "RGB", .*_torchvision.yaml'):
        Checkpointer(build_model(cfg)).load(str(tmp_path / "maskrcnn.pth"))


def test_every_parameter_of_the_second_version_has_a_name():
    model = detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    cfg = model_zoo.get_config(f"{MASK}_R_50_FPN_torchvision.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = cfg.MODEL.ROI_BOX_HEAD.NORM = (
        cfg.MODEL.ROI_MASK_HEAD.NORM
    ) = "BN"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RPN.CONV_DIMS = [-1, -1]
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 4, 1
    own = build_model(cfg).state_dict()
    weights = detectron2_weights(model.state_dict())
    assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in own.items()}
