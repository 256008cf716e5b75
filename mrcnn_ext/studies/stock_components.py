"""detectron2's own components in place of ours, of the same sizes: what the quickstart is laid beside."""

from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.resnet import BasicBlock

__all__ = ["STOCK_COMPONENTS"]

# Config keys that go over configs/quickstart.yaml.
STOCK_COMPONENTS = {
    "MODEL.BACKBONE.NAME": "build_stock_resnet18_fpn_backbone",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "KRCNNConvDeconvUpsampleHead",
    # As detectron2 trains on the CPU: its AMPTrainer asserts CUDA.
    "MODEL.CHANNELS_LAST": False,
    "SOLVER.AMP.ENABLED": False,
}


# detectron2's build_resnet_backbone makes a ResNet-18 of 64 base channels only; its blocks take any number.
@BACKBONE_REGISTRY.register()
def build_stock_resnet18_fpn_backbone(cfg, input_shape):
    """detectron2's ResNet-18 under its FPN, with the channels that MODEL.TIMM.ARGS gives the timm ResNet-18."""
    widths = cfg.MODEL.TIMM.ARGS["channels"]
    stem = BasicStem(input_shape.channels, norm="BN")
    stages, in_channels = [], stem.out_channels
    for i, width in enumerate(widths):
        strides = [1 if i == 0 else 2, 1]
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                in_channels=in_channels,
                out_channels=width,
                stride_per_block=strides,
                norm="BN",
            )
        )
        in_channels = width
    bottom_up = ResNet(stem, stages, out_features=cfg.MODEL.FPN.IN_FEATURES)
    return FPN(
        bottom_up,
        cfg.MODEL.FPN.IN_FEATURES,
        cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
    )
