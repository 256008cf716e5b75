# Boxes, masks and keypoints on the synthetic street scenes: a small model, from scratch, in minutes on a CPU.
# A LazyConfig tests one dataset: the yaml tests the Cityscapes form of the scenes too.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from mrcnn_ext.modeling import TimmBackbone

from .common.data.coco_keypoint import dataloader
from .common.models.mask_keypoint_rcnn_fpn import model
from .common.optim import AdamW as optimizer
from .common.train import train

# From scratch the input must be normalised, or training diverges.
model.pixel_std = [57.375, 57.120, 58.395]
model.backbone.bottom_up = L(TimmBackbone)(
    model_name="resnet18",
    out_features=["res2", "res3", "res4", "res5"],
    model_args=dict(channels=[32, 64, 128, 256]),
)
model.backbone.out_channels = 64
model.backbone.norm = "BN"

model.proposal_generator.update(batch_size_per_image=128, pre_nms_topk=(400, 400), post_nms_topk=(200, 200))
model.proposal_generator.head.in_channels = 64
model.proposal_generator.anchor_generator.sizes = [[24], [40], [64], [100], [150]]

model.roi_heads.update(num_classes=8, batch_size_per_image=64)
model.roi_heads.box_head.update(input_shape=ShapeSpec(channels=64, height=7, width=7), fc_dims=[256, 256])
model.roi_heads.box_predictor.update(input_shape=ShapeSpec(channels=256), smooth_l1_beta=0.0)
model.roi_heads.mask_head.update(input_shape=ShapeSpec(channels=64, height=14, width=14), conv_dims=[64] * 4)
model.roi_heads.keypoint_head.update(
    input_shape=ShapeSpec(channels=64, height=14, width=14),
    conv_dims=[64] * 4,
    conv_norm="BN",
    loss_weight=0.7,
)

dataloader.train.dataset.update(names="scenes_easy_train", min_keypoints=0)
dataloader.train.total_batch_size = 4
dataloader.train.num_workers = 0
dataloader.train.mapper.update(use_instance_mask=True, instance_mask_format="bitmask")
dataloader.train.mapper.augmentations[0].update(short_edge_length=(160,), sample_style="choice", max_size=320)
dataloader.test.dataset.names = "scenes_easy_val"
dataloader.test.num_workers = 0
dataloader.test.mapper.augmentations[0].update(short_edge_length=160, max_size=320)

optimizer.update(lr=0.0015, weight_decay=0.05, fused=True)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=0.001,
    warmup_length=80 / 1800,
    warmup_method="linear",
)

train.update(device="cpu", init_checkpoint="", max_iter=1800, output_dir="output/quickstart", seed=0)
train.channels_last = train.amp.enabled = True
train.checkpointer.period = train.eval_period = 600
train.val_loss.max_images = 32
