# Our best mask head.
from ..common.coco_schedule import schedule
from ..common.models.our_heads import with_boundary
from .mask_rcnn_R_50_FPN import dataloader, model, optimizer, train

with_boundary(model)
lr_multiplier = schedule("1x", train, dataloader)
