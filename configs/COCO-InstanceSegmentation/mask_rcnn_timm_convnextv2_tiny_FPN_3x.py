from ..common.coco_schedule import schedule
from ..common.models.timm import from_timm
from ..common.optim import AdamW as optimizer
from .mask_rcnn_R_50_FPN import dataloader, model, train

from_timm("convnextv2_tiny", model, dataloader, train, drop_path_rate=0.1)
optimizer.weight_decay = 0.05
lr_multiplier = schedule("3x", train, dataloader)
