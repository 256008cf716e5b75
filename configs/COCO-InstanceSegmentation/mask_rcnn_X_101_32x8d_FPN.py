from detectron2.config import LazyCall as L
from detectron2.modeling.backbone import BottleneckBlock, ResNet

from .mask_rcnn_R_50_FPN import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.stages = [
    L(ResNet.make_stage)(
        block_class=BottleneckBlock,
        num_blocks=blocks,
        stride_per_block=[stride] + [1] * (blocks - 1),
        in_channels=in_channels,
        bottleneck_channels=out_channels,  # 32 groups of 8 in res2, twice as many in each next stage
        out_channels=out_channels,
        num_groups=32,
        stride_in_1x1=False,
        norm="FrozenBN",
    )
    for blocks, stride, in_channels, out_channels in zip(
        [3, 4, 23, 3], [1, 2, 2, 2], [64, 256, 512, 1024], [256, 512, 1024, 2048], strict=True
    )
]
model.pixel_std = [57.375, 57.120, 58.395]  # these weights expect it, unlike MSRA's
train.init_checkpoint = "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl"
