# A plain Vision Transformer, with attention over the whole image, under a simple feature pyramid (ViTDet; Li et al.,
# ECCV 2022).
from ..common.coco_schedule import schedule
from ..common.data.large_scale_jitter import jitter_scale
from ..common.models.timm import from_timm, simple_pyramid
from ..common.optim import AdamW as optimizer
from .mask_rcnn_R_50_FPN import dataloader, model, train

from_timm("vit_small_patch16_224", model, dataloader, train, out_features=["res4"], drop_path_rate=0.1)
simple_pyramid(model)
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.box_head.update(conv_dims=[256] * 4, fc_dims=[1024], conv_norm="LN")
model.roi_heads.mask_head.conv_norm = "LN"

jitter_scale(dataloader)
optimizer.weight_decay = 0.05
lr_multiplier = schedule("3x", train)
