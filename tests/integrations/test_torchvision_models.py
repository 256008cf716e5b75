import subprocess
import sys

import pytest
import torch
from torch import nn
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from mrcnn_ext.integrations.torchvision import (
    FusedMultiScaleRoIAlign,
    keypoint_rcnn,
    mask_keypoint_rcnn,
    mask_rcnn,
)
from mrcnn_ext.layers import FCNMaskNetwork, HeatmapKeypointNetwork

BUILDERS = {
    "mask": (mask_rcnn, {"masks"}),
    "keypoint": (keypoint_rcnn, {"keypoints", "keypoints_scores"}),
    "both": (mask_keypoint_rcnn, {"masks", "keypoints", "keypoints_scores"}),
}
BOXES = [[8, 8, 40, 56], [50, 4, 90, 30]]
SMALL = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0, "box_detections_per_img": 5}


def small_heads(kind):
    heads = {
        "mask_head": FCNMaskNetwork(16, 2, [16, 16]),
        "keypoint_head": HeatmapKeypointNetwork(16, 17, [16]),
    }
    return heads if kind == "both" else {f"{kind}_head": heads[f"{kind}_head"]}


@pytest.mark.parametrize("kind", BUILDERS)
def test_trains_a_step_and_infers(make_backbone, make_targets, kind):
    build, found = BUILDERS[kind]
    torch.manual_seed(0)
    model = build(make_backbone(), 3, **small_heads(kind), **SMALL)
    assert isinstance(model, KeypointRCNN if kind == "keypoint" else MaskRCNN)
    images, targets = make_targets(BOXES, BOXES[:1])
    losses = model(images, targets)
    expected = {
        f"loss_{name}"
        for name in {"mask": ["mask"], "keypoint": ["keypoint"]}.get(kind, ["mask", "keypoint"])
    }
    assert expected <= set(losses) and all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        output = model.eval()(images)
    assert set(output[0]) == {"boxes", "labels", "scores"} | found
    assert len(output[0]["boxes"]) == 5
    if "masks" in found:
        assert output[0]["masks"].shape == (5, 1, 64, 96)
    if "keypoints" in found:
        assert output[0]["keypoints"].shape == (5, 17, 3)


def test_joint_model_on_images_without_objects(make_backbone, make_targets):
    model = mask_keypoint_rcnn(make_backbone(), 3, **small_heads("both"), **SMALL)
    losses = model(*make_targets([], []))
    sum(losses.values()).backward()
    assert losses["loss_mask"] == 0 and losses["loss_keypoint"] == 0
    assert all(p.grad is not None for p in model.roi_heads.keypoint_head.parameters())


def test_objects_without_keypoints_leave_the_keypoint_loss_alone(make_backbone, make_targets):
    model = mask_keypoint_rcnn(make_backbone(), 3, **small_heads("both"), **SMALL)
    images, targets = make_targets(BOXES)
    targets[0]["keypoints"][..., 2] = 0
    losses = model(images, targets)
    assert losses["loss_keypoint"] == 0 and losses["loss_mask"] > 0


def test_nothing_found(make_backbone, make_targets):
    model = mask_keypoint_rcnn(
        make_backbone(), 3, **small_heads("both"), **{**SMALL, "box_score_thresh": 1.1}
    )
    output = model.eval()(make_targets(BOXES)[0])[0]
    assert output["masks"].shape == (0, 1, 64, 96) and output["keypoints"].shape == (0, 17, 3)


def test_mask_of_a_class_comes_from_its_channel(make_backbone):
    model = mask_rcnn(make_backbone(), 3, mask_head=nn.Identity())
    logits = model.roi_heads.mask_predictor(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
    assert logits.flatten().tolist() == [0, 1, 2]


def test_defaults_are_the_papers(make_backbone):
    heads = mask_keypoint_rcnn(make_backbone(), 3).roi_heads
    with torch.no_grad():
        assert heads.mask_head(torch.zeros(1, 16, 14, 14)).shape == (1, 2, 28, 28)
        assert heads.keypoint_head(torch.zeros(1, 16, 14, 14)).shape == (1, 17, 56, 56)
    assert heads.box_roi_pool.output_size == (7, 7)
    for pooler in (heads.box_roi_pool, heads.mask_roi_pool, heads.keypoint_roi_pool):
        assert isinstance(pooler, FusedMultiScaleRoIAlign)


def test_takes_torchvisions_own_backbone_and_heads(make_targets):
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = mask_rcnn(
        backbone,
        3,
        mask_head=MaskRCNNHeads(256, (8,), 1),
        mask_predictor=MaskRCNNPredictor(8, 8, 3),
        **SMALL,
    )
    losses = model(*make_targets(BOXES))
    assert losses["loss_mask"].isfinite()


def test_detectron2_is_not_needed():
    program = "import sys; sys.modules['detectron2'] = None; import mrcnn_ext.studies.quickstart_torchvision"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
