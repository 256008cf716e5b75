"""Every kind of R-CNN that the package loads is shown, with the heads that it has; others are refused."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model

from mrcnn_ext.app.drawing import annotated, shapes
from mrcnn_ext.app.inputs import sample_scene
from mrcnn_ext.app.models import ShownModel
from mrcnn_ext.app.roi_view import LAYERS, pooled
from mrcnn_ext.engine.description import ABOUT, describe
from mrcnn_ext.engine.errors import UserError

C4 = (
    *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", "['res4']"),
    *("MODEL.RESNETS.DEPTH", "50", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16", "MODEL.RESNETS.NUM_GROUPS", "1"),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", "8", "MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64]]", "MODEL.RPN.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_HEADS.NAME", "FusedRes5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", "['res4']"),
    *("MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", "0"),
)
KINDS = {
    "stock boxes": (("MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "False"), ["box head"]),
    "stock, all": ((), ["box head", "mask head", "keypoint head"]),
    "stock RoIPool": (
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool", "MODEL.KEYPOINT_ON", "False"),
        ["box head", "mask head"],
    ),
    "cascade": (
        (
            *("MODEL.ROI_HEADS.NAME", "FusedCascadeROIHeads", "MODEL.KEYPOINT_ON", "False"),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
        ),
        ["box head", "mask head"],
    ),
    "wide RoIs of keypoints": (
        (
            *("MODEL.ROI_HEADS.NAME", "FusedROIHeads", "MODEL.ROI_KEYPOINT_HEAD.BOX_SCALE", "1.5"),
            *("MODEL.ROI_KEYPOINT_HEAD.NAME", "HeatmapKeypointHead"),
        ),
        ["box head", "mask head", "keypoint head"],
    ),
    "C4": (C4, ["all heads"]),
}


def checkpoint(path, cfg):
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict(), ABOUT: describe(cfg)}, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_shown(kind, tiny_cfg, tmp_path):
    options, heads = KINDS[kind]
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "160", *options)
    model = ShownModel(checkpoint(tmp_path / "model.pth", cfg))
    assert list(model.heads) == heads
    assert model.classes == ["class 0", "class 1", "class 2"]
    assert model.has_masks == cfg.MODEL.MASK_ON and model.has_keypoints == cfg.MODEL.KEYPOINT_ON
    assert model.keypoint_box_scale == (1.5 if "wide" in kind else 1)
    scene = sample_scene(0)
    instances = model.predict(scene).instances
    assert len(instances) > 0 and instances.has("pred_masks") == model.has_masks
    objects = shapes(scene.read(), instances, model.names)["objects"]
    assert ("mask" in objects[0], "points" in objects[0]) == (model.has_masks, model.has_keypoints)
    assert annotated(scene.read(), instances, model.names).std() > 0
    for head in heads:
        pyramid = model.pyramid(scene, head)
        box = torch.tensor([[10.0, 12.0, 70.0, 80.0]])
        for layer in LAYERS:
            assert pooled(pyramid, box, layer).shape[2:] == pyramid.options.bins
    assert model.latency(scene, accelerated=True)["heads"] > 0


def test_another_meta_architecture_is_refused(tiny_cfg, tmp_path):
    cfg = tiny_cfg(
        *(
            "MODEL.META_ARCHITECTURE",
            "RetinaNet",
            "MODEL.BACKBONE.NAME",
            "build_retinanet_resnet_fpn_backbone",
        ),
        *(
            "MODEL.RESNETS.OUT_FEATURES",
            "['res3', 'res4', 'res5']",
            "MODEL.FPN.IN_FEATURES",
            "['res3', 'res4', 'res5']",
        ),
        *("MODEL.RETINANET.NUM_CLASSES", "3"),
    )
    path = checkpoint(tmp_path / "model.pth", cfg)
    with pytest.raises(UserError, match="is a RetinaNet: the app shows"):
        ShownModel(path)
